"""Several turns in one response: states, signals and energies are of what the policy wrote, not of what a tool said."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from recipe.poise.capture.energy import response_weights, score_weights
from recipe.poise.capture.hook import HiddenStateCapture, find_blocks, token_spans
from recipe.poise.capture.signals import SIGNALS, compute_signals

END_THINK, EOS, N = 5, 2, 4
ROWS = [  # prompt length; response ids; which of them are the policy's own
    (6, [7, 8, 9, 10, 11, 12, 13], [1, 1, 0, 0, 0, 1, 1]),
    (3, [7, END_THINK, 9, END_THINK, 8, 8], [1, 1, 0, 0, 1, 0]),  # the tool's </think> ends no reasoning
    (4, [7, 7, 7], [1, 1, 1]),
    (2, [9, 9], [0, 0]),  # nothing of its own
    (5, [8, 0, 0, 8, END_THINK, 8, 8, 0, EOS], [1, 0, 0, 1, 1, 1, 1, 0, 1]),
    (1, [3], [1]),
]


def packed():
    generator = torch.Generator().manual_seed(0)
    ids = [torch.cat([torch.randint(6, 30, (p,), generator=generator), torch.tensor(r)]) for p, r, _ in ROWS]
    offsets = torch.tensor([0, *[len(row) for row in ids]]).cumsum(0)
    mask_Y = torch.tensor([own for _, _, mask in ROWS for own in mask])
    lengths = torch.tensor([len(r) for _, r, _ in ROWS])
    return torch.cat(ids), offsets, lengths, mask_Y


def own_places(row, start):
    """Packed positions of the row's own tokens, and how many of them come up to the last own </think>, or all."""
    prompt, response, mask = ROWS[row]
    places = [start + prompt + i for i, own in enumerate(mask) if own]
    ends = [i for i, (token, own) in enumerate(zip(response, mask, strict=True)) if own and token == END_THINK]
    return places, sum(mask[: ends[-1] + 1]) if ends else len(places), bool(ends)


@pytest.mark.parametrize("is_packed", [True, False])
@torch.no_grad()
def test_states_are_means_over_own_tokens(is_packed):
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "head_dim": 8}
    model = AutoModelForCausalLM.from_config(Qwen3Config(**shape, num_attention_heads=2, num_key_value_heads=1)).eval()
    ids_T, offsets, lengths, mask_Y = packed()
    block = find_blocks(model, 3)[1]
    seen = []
    handle = block.register_forward_hook(lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out))
    expected = []
    for row, (prompt, _, _) in enumerate(ROWS):
        start, end = offsets[row : row + 2].tolist()
        seen.clear()
        model(input_ids=ids_T[start:end].unsqueeze(0), use_cache=False)
        hidden_TD = seen[0].reshape(-1, 16)
        places, upto, _ = own_places(row, 0)
        own = places[:upto][-N:]
        expected.append((hidden_TD[:prompt][-N:].mean(0), hidden_TD[own].mean(0) if own else torch.zeros(16)))
    handle.remove()
    capture = HiddenStateCapture(block, N)
    sizes = offsets.diff().tolist()
    capture.arm(token_spans(ids_T, offsets, lengths, END_THINK, mask_Y), None if is_packed else max(sizes))
    if is_packed:
        positions = torch.cat([torch.arange(n) for n in sizes])
        model(input_ids=ids_T[None], position_ids=positions[None], attention_mask=None, use_cache=False)
    else:
        rows = torch.nn.utils.rnn.pad_sequence(ids_T.split(sizes), batch_first=True)
        mask = torch.arange(max(sizes)) < torch.tensor(sizes).unsqueeze(1)
        model(input_ids=rows, attention_mask=mask.long(), use_cache=False)
    for found, wanted in zip(capture.take(), zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(found, torch.stack(wanted), rtol=1e-5, atol=1e-5)


def test_signals_are_of_own_tokens():
    """The tool's positions hold NaN: whoever looks at them gives NaN."""
    ids_T, offsets, lengths, mask_Y = packed()
    generator = torch.Generator().manual_seed(1)
    entropy_T, log_prob_T = torch.full((len(ids_T),), math.nan), torch.full((len(ids_T),), math.nan)
    expected = {name: [] for name in SIGNALS}
    for row, (_, response, _) in enumerate(ROWS):
        places, upto, thinks = own_places(row, int(offsets[row]))
        before = torch.tensor(places, dtype=torch.int64) - 1
        entropy_T[before] = torch.rand(len(places), generator=generator)
        log_prob_T[before] = -torch.rand(len(places), generator=generator)
        entropy, log_prob = entropy_T[before].tolist(), log_prob_T[before].tolist()

        def mean(x, other=0.0):
            return sum(x) / len(x) if x else other

        whole = mean(entropy)
        expected["entropy_response"].append(whole)
        expected["entropy_reasoning"].append(mean(entropy[:upto], whole))
        expected["entropy_answer"].append(mean(entropy[upto:], whole) if thinks else whole)
        expected["entropy_last"].append(entropy[-1] if entropy else 0.0)
        expected["entropy_max"].append(max(entropy, default=0.0))
        expected["entropy_min"].append(min(entropy, default=0.0))
        expected["logprob_mean"].append(mean(log_prob))
        expected["length"].append(math.log1p(len(places)))
        expected["truncated"].append(float(len(response) >= 9 and response[-1] != EOS))
    spans = token_spans(ids_T, offsets, lengths, END_THINK, mask_Y)
    found_RS = compute_signals(tuple(SIGNALS), spans, entropy_T, log_prob_T, ids_T, (EOS,), 9)
    for column, name in enumerate(SIGNALS):
        torch.testing.assert_close(found_RS[:, column], torch.tensor(expected[name]), rtol=1e-5, atol=1e-6, msg=name)


def test_a_mask_of_ones_changes_nothing():
    ids_T, offsets, lengths, mask_Y = packed()
    plain, masked = (token_spans(ids_T, offsets, lengths, END_THINK, mask) for mask in (None, torch.ones_like(mask_Y)))
    for name in ("state_end", "has_think", "own_T"):
        assert torch.equal(getattr(plain, name), getattr(masked, name))
    assert plain.own_length.tolist() == lengths.tolist()
    told = token_spans(ids_T, offsets, lengths, END_THINK, mask_Y)
    assert told.own_length.tolist() == [sum(mask) for _, _, mask in ROWS]
    assert told.state_end.tolist() != plain.state_end.tolist()


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_the_rollouts_log_probs_give_the_passes_energy(mode):
    ids_T, offsets, lengths, mask_Y = packed()
    log_prob_T = -3 * torch.rand(len(ids_T), generator=torch.Generator().manual_seed(2))
    spans = token_spans(ids_T, offsets, lengths, None, mask_Y)
    passed_R2 = score_weights(log_prob_T, mask_Y, spans, mode)
    first = [start + prompt - 1 for start, (prompt, _, _) in zip(offsets.tolist(), ROWS, strict=False)]
    rolled_Y = torch.cat([log_prob_T[at : at + n] for at, n in zip(first, lengths.tolist(), strict=True)])
    rolled_Y[mask_Y == 0] = 0.0  # as an agent loop gives them
    torch.testing.assert_close(response_weights(rolled_Y, mask_Y, lengths, mode), passed_R2, rtol=0, atol=0)
    assert passed_R2[3].tolist() == [0.0, 0.0] and (passed_R2[[0, 1, 2, 4, 5]] > 0).all()
