"""Signals against a loop over rows, and the stream that carries rows to the probe."""

import math

import pytest
import torch

from recipe.poise.capture.hook import token_spans
from recipe.poise.capture.signals import SIGNALS, check_signals, compute_signals
from recipe.poise.capture.stream import FeatureStream

END_THINK, EOS, MAX_RESPONSE = 1, 2, 8
ROWS = [  # prompt length, response ids
    (4, [7, 8, END_THINK, 9, EOS]),
    (3, [9, 9, 9, 9, 9, 9, 9, 9]),  # full budget, no end: truncated
    (5, [7, END_THINK]),  # nothing after the reasoning
    (1, [EOS]),
    (2, [END_THINK, 7, 7, 7, 7, 7, 7, EOS]),  # full budget, ended
]


def inputs():
    generator = torch.Generator().manual_seed(0)
    ids = [torch.cat([torch.full((p,), 5), torch.tensor(r)]) for p, r in ROWS]
    offsets = torch.tensor([0, *[len(row) for row in ids]]).cumsum(0)
    ids_T = torch.cat(ids)
    entropy_T, log_prob_T = torch.rand(len(ids_T), generator=generator), -torch.rand(len(ids_T), generator=generator)
    return ids_T, offsets, entropy_T, log_prob_T


def by_loop(entropy_T, log_prob_T, offsets):
    expected = {name: [] for name in SIGNALS}
    for (prompt, response), start in zip(ROWS, offsets.tolist(), strict=False):
        first = start + prompt - 1  # the logits of the last prompt token predict the first response token
        entropy, log_prob = (x[first : first + len(response)].tolist() for x in (entropy_T, log_prob_T))
        split = len(response) - response[::-1].index(END_THINK) if END_THINK in response else None
        mean = sum(entropy) / len(entropy)
        reasoning = entropy[:split] if split else entropy
        answer = entropy[split:] if split else entropy
        expected["entropy_response"].append(mean)
        expected["entropy_reasoning"].append(sum(reasoning) / len(reasoning))
        expected["entropy_answer"].append(sum(answer) / len(answer) if answer else mean)
        expected["entropy_last"].append(entropy[-1])
        expected["entropy_max"].append(max(entropy))
        expected["entropy_min"].append(min(entropy))
        expected["logprob_mean"].append(sum(log_prob) / len(log_prob))
        expected["length"].append(math.log1p(len(response)))
        expected["truncated"].append(float(len(response) >= MAX_RESPONSE and response[-1] != EOS))
    return expected


def test_every_signal_agrees_with_a_loop():
    ids_T, offsets, entropy_T, log_prob_T = inputs()
    spans = token_spans(ids_T, offsets, torch.tensor([len(r) for _, r in ROWS]), END_THINK)
    names = tuple(SIGNALS)
    found_RS = compute_signals(names, spans, entropy_T, log_prob_T, ids_T, (EOS,), MAX_RESPONSE)
    assert found_RS.dtype == torch.float32
    expected = by_loop(entropy_T, log_prob_T, offsets)
    for column, name in enumerate(names):
        torch.testing.assert_close(found_RS[:, column], torch.tensor(expected[name]), rtol=1e-5, atol=1e-6, msg=name)
    assert expected["truncated"] == [0.0, 1.0, 0.0, 0.0, 0.0]


def test_unknown_signals_are_named():
    check_signals(["reward", "length"])
    with pytest.raises(ValueError, match=r"signals\[1\]='lenght': want one of entropy_response"):
        check_signals(["reward", "lenght"])


def test_stream_finds_rows_by_id_in_any_order():
    stream = FeatureStream()
    stream.append(torch.tensor([7, -3]), torch.tensor([[7.0], [-3.0]]), torch.tensor([[0.7, 7.0], [0.3, 3.0]]), 0.5)
    stream.append(torch.tensor([0]), torch.tensor([[0.0]]), torch.tensor([[0.1, 1.0]]), 0.25)
    assert stream.lookup(torch.tensor([0, 7, -3])).flatten().tolist() == [0.0, 7.0, -3.0]
    assert stream.lookup_weights(torch.tensor([0, 7, -3]))[:, 1].tolist() == [1.0, 7.0, 3.0]
    assert stream.seconds == 0.75
    with pytest.raises(RuntimeError, match=r"rows \[4\] were not captured"):
        stream.lookup(torch.tensor([7, 4]))
    stream.clear()
    for lookup in (stream.lookup, stream.lookup_weights):
        with pytest.raises(RuntimeError, match="external_lib"):
            lookup(torch.tensor([7]))
