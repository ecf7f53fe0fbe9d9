"""How much a rollout's score weighs, from the log-prob pass's own numbers: no backward pass.

A rollout's score is the sum over its tokens of grad log pi. For a token the squared norm of d log pi / d logits is
1 - 2 pi_t + sum_v pi_v^2, with pi_t the probability of the chosen token; (1 - pi_t)^2 is its part that the log-prob
alone tells. With d_t that norm and a token's weight u_t = d_t (-log pi_t)^a, a response's energy is

    (1 - c) sum_t u_t^2 + c (sum_t u_t)^2

The norm in the logits is nearly the same for all unlikely tokens; the norm in the parameters is not, and a rare token's
is several times that of a merely unlikely one. a, the surprise, is how much of that the energy takes. The squared norm
of a sum is the first term only where the tokens' scores are orthogonal. They are not: tokens of a failed rollout pull
the same way. c, the coherence, is the part of their directions that they share.

Where there is no such pass, the rollout's own log-probs tell the same.

Shapes: R rows, T tokens of the packed sequence, Y response tokens of all rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from recipe.poise.capture.hook import TokenSpans

SUM, MEAN = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm"), "seq-mean-token-mean"
AGGREGATIONS = (*SUM, MEAN)  # verl's actor.loss_agg_mode


@dataclass(frozen=True)
class EnergyForm:
    """a and c; the defaults were chosen against true norms (docs/gradient.md)."""

    surprise: float = 1.0
    coherence: float = 0.1

    def of_tokens(self, log_prob: Tensor, sum_pi_squared: Tensor | None = None) -> Tensor:
        """u_t^2 of tokens, float64, of any shape.

        Args:
            sum_pi_squared: sum over the vocabulary of squared probabilities, where it is known.
        """
        log_prob = log_prob.double()
        square = torch.expm1(log_prob).square()  # (1 - pi)^2, with all its digits where pi is close to 1
        if sum_pi_squared is not None:  # the other tokens' part, which rounding may make negative
            square = square + (sum_pi_squared.double() - (2.0 * log_prob).exp()).clamp(min=0.0)
        return square * log_prob.abs().pow(2.0 * self.surprise)

    def of_response(self, square: Tensor, root: Tensor) -> Tensor:
        """Energy from the sum of u_t^2 and the sum of u_t."""
        return (1.0 - self.coherence) * square + self.coherence * root.square()


DEFAULT_FORM = EnergyForm()


def score_weights(
    log_prob_T: Tensor,
    response_mask_Y: Tensor,
    spans: TokenSpans,
    loss_agg_mode: str,
    sum_pi_squared_T: Tensor | None = None,
    form: EnergyForm = DEFAULT_FORM,
) -> Tensor:
    """Energy and length of each response as the loss weighs them, (R, 2) float32.

    Where the loss is a mean over a row's tokens, a row's score is divided by its length, and so its energy by length
    squared; the length, which stands for a number of tokens of equal, orthogonal energy, becomes 1 / length.

    Args:
        log_prob_T: of the chosen tokens; that of token p stands at p - 1, as its logits do.
        response_mask_Y: tokens that the loss counts; rows one after the other.
        sum_pi_squared_T: sum over the vocabulary of squared probabilities, where the pass has computed it.
        form: a and c.
    """
    length_R = spans.response_end - spans.prompt_end
    row_Y = _rows(length_R, len(response_mask_Y))
    first_R = length_R.cumsum(0) - length_R
    place_Y = torch.arange(len(row_Y), device=row_Y.device) - first_R[row_Y] + spans.prompt_end[row_Y] - 1
    squares_Y = None if sum_pi_squared_T is None else sum_pi_squared_T[place_Y]
    return response_weights(log_prob_T[place_Y], response_mask_Y, length_R, loss_agg_mode, squares_Y, form)


def _rows(length_R: Tensor, tokens: int) -> Tensor:
    """(Y,) the row of each response token."""
    numbers = torch.arange(len(length_R), device=length_R.device)
    return torch.repeat_interleave(numbers, length_R, output_size=tokens)


def response_weights(
    log_prob_Y: Tensor,
    response_mask_Y: Tensor,
    length_R: Tensor,
    loss_agg_mode: str,
    sum_pi_squared_Y: Tensor | None = None,
    form: EnergyForm = DEFAULT_FORM,
) -> Tensor:
    """The same from response tokens alone, rows one after the other, of `length_R` tokens each."""
    rows, row_Y = len(length_R), _rows(length_R, len(response_mask_Y))
    energy_Y = form.of_tokens(log_prob_Y, sum_pi_squared_Y)
    counted_Y = response_mask_Y.to(row_Y.device) > 0
    # masked tokens are set to 0, not multiplied by it: their numbers need not be finite
    energy_Y = torch.where(counted_Y, energy_Y, 0.0)
    columns_Y3 = torch.stack([energy_Y, counted_Y.double(), energy_Y.sqrt()], dim=1)
    sums_R3 = columns_Y3.new_zeros(rows, 3).index_add_(0, row_Y, columns_Y3)
    sums_R2, root_R = sums_R3[:, :2].clone(), sums_R3[:, 2]
    sums_R2[:, 0] = form.of_response(sums_R2[:, 0], root_R)
    if loss_agg_mode == MEAN:
        sums_R2 = sums_R2 / sums_R2[:, 1:].clamp(min=1.0).square()
    return sums_R2.float()
