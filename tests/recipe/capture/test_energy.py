"""The energy of a response against a loop, and against autograd for a policy whose logits are its parameters."""

import math

import pytest
import torch

from recipe.poise.capture.energy import AGGREGATIONS, DEFAULT_FORM, EnergyForm, score_weights
from recipe.poise.capture.hook import token_spans

ROWS = [(4, [1, 1, 0, 0, 1]), (3, [1]), (1, [0, 0]), (2, [1, 1, 1])]  # prompt length; mask of the response


def inputs(vocabulary=7):
    """Logits of every position of the packed rows, the tokens, spans and the masks one after the other."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([prompt + len(mask) for prompt, mask in ROWS])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    ids_T = torch.randint(0, vocabulary, (int(lengths.sum()),), generator=generator)
    logits_TV = 3 * torch.randn(len(ids_T), vocabulary, generator=generator).double()
    mask_Y = torch.cat([torch.tensor(mask) for _, mask in ROWS])
    spans = token_spans(ids_T, offsets, torch.tensor([len(mask) for _, mask in ROWS]), None)
    return logits_TV, ids_T, spans, mask_Y, offsets


def passed(logits_TV, ids_T):
    """What verl's log-prob pass gives: log-probs of the next tokens, and sums of squared probabilities."""
    log_TV = logits_TV.log_softmax(1)
    log_prob_T = log_TV.gather(1, ids_T.roll(-1).unsqueeze(1)).squeeze(1)
    return log_prob_T.float(), log_TV.exp().square().sum(1).float()


def by_loop(logits_TV, ids_T, offsets, exact, form):
    """Energy and number of tokens that count, row by row and token by token."""
    rows = []
    for (prompt, mask), start in zip(ROWS, offsets.tolist(), strict=False):
        energy = root = 0.0
        for place, counts in enumerate(mask):
            token = start + prompt + place
            probability = logits_TV[token - 1].softmax(0)
            chosen = float(probability[ids_T[token]])
            one = 1 - 2 * chosen + float(probability.square().sum()) if exact else (1 - chosen) ** 2
            one *= math.log(chosen) ** (2 * form.surprise)
            energy += one if counts else 0.0
            root += math.sqrt(one) if counts else 0.0
        rows.append(((1 - form.coherence) * energy + form.coherence * root**2, sum(mask)))
    return rows


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("form", [EnergyForm(0.0, 0.0), DEFAULT_FORM, EnergyForm(2.0, 1.0), EnergyForm(0.0, 0.3)])
@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_energy_and_length_agree_with_a_loop(mode, form, exact):
    logits_TV, ids_T, spans, mask_Y, offsets = inputs()
    log_prob_T, squares_T = passed(logits_TV, ids_T)
    found_R2 = score_weights(log_prob_T, mask_Y, spans, mode, squares_T if exact else None, form)
    rows = by_loop(logits_TV, ids_T, offsets, exact, form)
    if mode == "seq-mean-token-mean":
        rows = [(energy / max(length, 1) ** 2, 1 / length if length else 0.0) for energy, length in rows]
    assert found_R2.dtype == torch.float32
    torch.testing.assert_close(found_R2, torch.tensor(rows).float(), rtol=1e-5, atol=1e-7)
    assert found_R2[2].tolist() == [0.0, 0.0]  # nothing of it counts


def test_the_exact_energy_is_the_squared_norm_of_the_gradient():
    """Each position with logits of its own: the tokens' gradients are orthogonal, and the sum of squares is all."""
    logits_TV, ids_T, spans, mask_Y, _ = inputs()
    logits_TV.requires_grad_()
    log_prob_T = logits_TV.log_softmax(1).gather(1, ids_T.roll(-1).unsqueeze(1)).squeeze(1)
    squares_T = passed(logits_TV.detach(), ids_T)[1]
    found_R2 = score_weights(log_prob_T.detach(), mask_Y, spans, "token-mean", squares_T, EnergyForm(0.0, 0.0))
    for row, (_, mask) in enumerate(ROWS):
        first = int(spans.prompt_end[row]) - 1
        score = (log_prob_T[first : first + len(mask)] * torch.tensor(mask)).sum()
        (gradient,) = torch.autograd.grad(score, logits_TV, retain_graph=True)
        assert float(found_R2[row, 0]) == pytest.approx(float(gradient.square().sum()), rel=1e-5, abs=1e-9)


def test_sure_tokens_keep_their_digits_and_masked_ones_do_not_matter():
    spans = token_spans(torch.arange(5), torch.tensor([0, 5]), torch.tensor([3]), None)
    log_prob_T = torch.tensor([math.nan, -1e-9, math.nan, 0.0, math.nan])
    for surprise, energy in ((0.0, 1e-18), (1.0, 1e-36)):
        found_R2 = score_weights(log_prob_T, torch.tensor([1, 0, 1]), spans, "token-mean", form=EnergyForm(surprise))
        assert found_R2[0].tolist() == [pytest.approx(energy, rel=1e-6), 2.0]
    rounded_T = torch.full((5,), 1.0 - 1e-7)  # sum of squares below what the chosen token alone gives
    assert score_weights(torch.zeros(5), torch.ones(3), spans, "token-mean", rounded_T)[0, 0] == 0.0
    unknown_R2 = score_weights(log_prob_T, torch.ones(3), spans, "token-mean")
    assert unknown_R2[0, 0].isnan()  # what the pass does not know is not made up: the row is left out


@pytest.mark.parametrize("split", [1, 2, 3])
def test_any_split_into_micro_batches_gives_the_same(split):
    logits_TV, ids_T, spans, mask_Y, offsets = inputs()
    log_prob_T, _ = passed(logits_TV, ids_T)
    whole_R2 = score_weights(log_prob_T, mask_Y, spans, "token-mean")
    parts, lengths = [], torch.tensor([len(mask) for _, mask in ROWS])
    ends = lengths.cumsum(0)
    for rows in torch.arange(len(ROWS)).split(split):
        first, last = int(rows[0]), int(rows[-1]) + 1
        tokens = slice(int(offsets[first]), int(offsets[last]))
        part = token_spans(ids_T[tokens], offsets[first : last + 1] - offsets[first], lengths[rows], None)
        mask = mask_Y[int(ends[first] - lengths[first]) : int(ends[last - 1])]
        parts.append(score_weights(log_prob_T[tokens], mask, part, "token-mean"))
    torch.testing.assert_close(torch.cat(parts), whole_R2, rtol=0, atol=0)
