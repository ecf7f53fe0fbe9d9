"""Scalar features of a rollout from the log-prob pass's own entropy, log-probs and token ids, on the device.

Entropy and log-prob of response token p sit at p - 1: the position whose logits predicted it. What the policy has not
written itself, a tool's answer or a user's turn, takes no part.

Shapes: R rows, T tokens of the packed sequence, N own tokens of all responses, S signals.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from probe.checked import SettingError
from recipe.poise.capture.hook import TokenSpans

DEFAULT_SIGNALS = ("entropy_response", "entropy_reasoning", "entropy_answer")
PROMPT_ONLY_SIGNALS: tuple[str, ...] = ()  # signals that do not depend on the rollout: none of these


@dataclass(frozen=True)
class PassOutputs:
    """What a signal may be made of."""

    spans: TokenSpans
    entropy_T: Tensor
    log_prob_T: Tensor
    input_ids_T: Tensor
    eos_token_ids: tuple[int, ...]
    max_response_length: int

    @property
    def length_R(self) -> Tensor:
        """Tokens of the response, whoever wrote them."""
        return self.spans.response_end - self.spans.prompt_end


def _segment_mean(x_T: Tensor, spans: TokenSpans, start_R: Tensor, end_R: Tensor) -> Tensor:
    """Mean (R,) of what predicted the own tokens of [start, end); NaN where there are none. Through a running sum in
    float64."""
    is_own_T = spans.own_T.diff(append=spans.own_T[-1:]) > 0  # of the next token
    total = torch.cat([x_T.new_zeros(1, dtype=torch.float64), torch.where(is_own_T, x_T.double(), 0.0).cumsum(0)])
    return ((total[end_R - 1] - total[start_R - 1]) / (spans.own_before(end_R) - spans.own_before(start_R))).float()


def _response_mean(x_T: Tensor, spans: TokenSpans) -> Tensor:
    mean_R = _segment_mean(x_T, spans, spans.prompt_end, spans.response_end)
    return torch.where(spans.own_length > 0, mean_R, 0.0)


def _entropy(out: PassOutputs, start_R: Tensor, end_R: Tensor) -> Tensor:
    """Mean entropy of a part; an empty part takes the response's mean, and an empty response 0."""
    part_R = _segment_mean(out.entropy_T, out.spans, start_R, end_R)
    some_R = out.spans.own_before(end_R) > out.spans.own_before(start_R)
    return torch.where(some_R, part_R, _response_mean(out.entropy_T, out.spans))


def _entropy_extreme(out: PassOutputs, reduce: str) -> Tensor:
    """Largest or smallest entropy over the response; 0 for an empty one."""
    length_R = out.spans.own_length
    row_N = torch.repeat_interleave(
        torch.arange(len(length_R), device=length_R.device), length_R, output_size=int(length_R.sum())
    )
    place_N = out.spans.own_place(torch.arange(1, len(row_N) + 1, device=row_N.device)) - 1
    empty_R = torch.zeros(len(length_R), dtype=torch.float32, device=row_N.device)
    return empty_R.scatter_reduce(0, row_N, out.entropy_T[place_N].float(), reduce, include_self=False)


def _entropy_last(out: PassOutputs) -> Tensor:
    last_R = out.spans.own_place(out.spans.own_before(out.spans.response_end)) - 1
    return torch.where(out.spans.own_length > 0, out.entropy_T[last_R.clamp(min=0)].float(), 0.0)


def _truncated(out: PassOutputs) -> Tensor:
    """1 where the response fills its budget without an end token."""
    last_R = out.input_ids_T[out.spans.response_end - 1]
    ended_R = torch.isin(last_R, torch.tensor(out.eos_token_ids, device=last_R.device, dtype=last_R.dtype))
    return ((out.length_R >= out.max_response_length) & ~ended_R).float()


SIGNALS: dict[str, Callable[[PassOutputs], Tensor]] = {
    "entropy_response": lambda out: _entropy(out, out.spans.prompt_end, out.spans.response_end),
    "entropy_reasoning": lambda out: _entropy(out, out.spans.prompt_end, out.spans.reasoning_end),
    "entropy_answer": lambda out: _entropy(
        out, torch.where(out.spans.has_think, out.spans.reasoning_end, out.spans.prompt_end), out.spans.response_end
    ),
    "entropy_last": _entropy_last,
    "entropy_max": lambda out: _entropy_extreme(out, "amax"),
    "entropy_min": lambda out: _entropy_extreme(out, "amin"),
    "logprob_mean": lambda out: _response_mean(out.log_prob_T, out.spans),
    "length": lambda out: out.spans.own_length.float().log1p(),
    "truncated": _truncated,
}
REWARD = "reward"  # the rollout's own reward: the probe worker adds it, the pass does not know it


def check_signals(names) -> None:
    """Raises SettingError, a ValueError, that names an unknown signal and the known ones."""
    known = [*SIGNALS, REWARD]
    for place, name in enumerate(names):
        if name not in known:
            raise SettingError(f"signals[{place}]", name, f"one of {', '.join(known)}")


def compute_signals(
    names,
    spans: TokenSpans,
    entropy_T,
    log_prob_T,
    input_ids_T,
    eos_token_ids: tuple[int, ...],
    max_response_length: int,
) -> Tensor:
    """The signals `names`, (R, S) float32, in that order. Raises ValueError for a name the pass cannot give."""
    for name in names:
        if name not in SIGNALS:
            raise ValueError(f"unknown signal {name!r}; the log-prob pass gives {', '.join(SIGNALS)}")
    out = PassOutputs(spans, entropy_T, log_prob_T, input_ids_T, tuple(eos_token_ids), max_response_length)
    return torch.stack([SIGNALS[name](out) for name in names], dim=1)
