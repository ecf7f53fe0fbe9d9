"""Captured states against a plain transformers forward: packed and padded, every architecture, every wrapping."""

import pytest
import torch
import transformers as hf

from recipe.poise.capture.hook import HiddenStateCapture, find_blocks, resolve_block, token_spans

END_THINK, VOCABULARY, LAYERS, HIDDEN = 5, 60, 3, 32
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "attn_implementation": "sdpa",
}
GROUPED = COMMON | {"num_key_value_heads": 2}
CONFIGS = {
    "qwen2": lambda: hf.Qwen2Config(**GROUPED),
    "qwen3": lambda: hf.Qwen3Config(**GROUPED, head_dim=8),
    "llama": lambda: hf.LlamaConfig(**GROUPED),
    "mistral": lambda: hf.MistralConfig(**GROUPED),
    "olmo2": lambda: hf.Olmo2Config(**GROUPED),
    "olmo3": lambda: hf.Olmo3Config(**GROUPED),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**COMMON),
}


def make_model(name="qwen3"):
    torch.manual_seed(0)
    return hf.AutoModelForCausalLM.from_config(CONFIGS[name]()).eval()


def make_rows(seed=0):
    """Prompt and response ids: long, shorter than N, one-token response, several </think>, one at the end, none."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(count, *ends):
        ids = torch.randint(6, VOCABULARY, (count,), generator=generator)
        ids[list(ends)] = END_THINK
        return ids

    return [
        (tokens(9), tokens(12, 7)),
        (tokens(2), tokens(1)),
        (tokens(4, 1), tokens(11, 2, 8)),  # the prompt's own </think> must not count
        (tokens(6), tokens(5, 4)),
        (tokens(3), tokens(7)),
        (tokens(5), tokens(6, 0)),
    ]


def spans_of(rows):
    lengths = torch.tensor([len(p) + len(r) for p, r in rows])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    ids_T = torch.cat([torch.cat(row) for row in rows])
    return token_spans(ids_T, offsets, torch.tensor([len(r) for _, r in rows]), END_THINK), ids_T, lengths


def packed_inputs(rows):
    _, ids_T, lengths = spans_of(rows)
    positions_T = torch.cat([torch.arange(n) for n in lengths.tolist()])
    return {"input_ids": ids_T.unsqueeze(0), "position_ids": positions_T.unsqueeze(0), "attention_mask": None}


def padded_inputs(rows):
    ids = torch.nn.utils.rnn.pad_sequence([torch.cat(row) for row in rows], batch_first=True)
    length_R = torch.tensor([len(p) + len(r) for p, r in rows])
    mask = (torch.arange(ids.shape[1]) < length_R.unsqueeze(1)).long()
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def expected_states(model, block, rows, n):
    """Row by row, from the output of `block` in a forward pass of that row alone."""
    seen = []
    handle = block.register_forward_hook(lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out))
    prompts, responses = [], []
    for prompt, response in rows:
        seen.clear()
        model(input_ids=torch.cat([prompt, response]).unsqueeze(0), use_cache=False)
        hidden_TD = seen[0].reshape(-1, HIDDEN)
        ends = (response == END_THINK).nonzero().flatten().tolist()
        last = ends[-1] + 1 if ends else len(response)
        prompts.append(hidden_TD[: len(prompt)][-n:].mean(0))
        responses.append(hidden_TD[len(prompt) : len(prompt) + last][-n:].mean(0))
    handle.remove()
    return torch.stack(prompts), torch.stack(responses)


@torch.no_grad()
def captured_states(model, capture, rows, packed=True):
    spans, _, lengths = spans_of(rows)
    capture.arm(spans, None if packed else int(lengths.max()))
    model(**(packed_inputs(rows) if packed else padded_inputs(rows)), use_cache=False)
    return capture.take()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_agrees_with_a_plain_forward(name, packed):
    model, rows = make_model(name), make_rows()
    block = find_blocks(model, LAYERS)[1]
    capture = HiddenStateCapture(block, num_tokens=4)
    found = captured_states(model, capture, rows, packed)
    for state, expected in zip(found, expected_states(model, block, rows, 4), strict=True):
        assert state.dtype == torch.float32
        torch.testing.assert_close(state, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_block_is_the_one_that_output_hidden_states_names():
    model, rows = make_model(), make_rows()[:1]
    capture = HiddenStateCapture(find_blocks(model, LAYERS)[1], num_tokens=3)
    prompt_RD, _ = captured_states(model, capture, rows)
    states = model(**packed_inputs(rows), use_cache=False, output_hidden_states=True).hidden_states
    torch.testing.assert_close(prompt_RD[0], states[2][0, 6:9].mean(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [(6,), (1, 5), (2, 2, 2), (1, 1, 1, 1, 1, 1)])
def test_any_split_into_micro_batches_gives_the_same_rows(sizes):
    model, rows = make_model(), make_rows()
    block = find_blocks(model, LAYERS)[2]
    capture = HiddenStateCapture(block, num_tokens=4)
    parts, start = [], 0
    for size in sizes:
        parts.append(captured_states(model, capture, rows[start : start + size]))
        start += size
    for side, expected in enumerate(expected_states(model, block, rows, 4)):
        torch.testing.assert_close(torch.cat([part[side] for part in parts]), expected, rtol=1e-5, atol=1e-5)


def test_lora_and_gradient_checkpointing():
    peft = pytest.importorskip("peft")
    model, rows = make_model(), make_rows()
    model.gradient_checkpointing_enable()
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model = peft.get_peft_model(model, settings)
    block = find_blocks(model, LAYERS)[1]
    for mode in (model.eval(), model.train()):
        found = captured_states(mode, HiddenStateCapture(block, num_tokens=4), rows)
        expected = expected_states(model, block, rows, 4)
        torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-5)
        block._forward_hooks.clear()


@pytest.mark.parametrize("packed", [True, False])
@torch.no_grad()
def test_logits_are_bit_identical_with_capture_on_and_off(packed):
    model, rows = make_model(), make_rows()
    inputs = packed_inputs(rows) if packed else padded_inputs(rows)
    plain = model(**inputs, use_cache=False).logits
    capture = HiddenStateCapture(find_blocks(model, LAYERS)[1], num_tokens=4)
    spans, _, lengths = spans_of(rows)
    capture.arm(spans, None if packed else int(lengths.max()))
    assert torch.equal(model(**inputs, use_cache=False).logits, plain)
    capture.take()
    assert torch.equal(model(**inputs, use_cache=False).logits, plain)


def test_bfloat16_is_summed_in_float32():
    block = torch.nn.Identity()
    capture = HiddenStateCapture(block, num_tokens=8)
    spans, ids_T, _ = spans_of(make_rows())
    hidden_TD = (torch.randn(len(ids_T), HIDDEN) + 100).bfloat16()
    capture.arm(spans, None)
    block(hidden_TD.unsqueeze(0))
    prompt_RD, _ = capture.take()
    torch.testing.assert_close(prompt_RD[0], hidden_TD[1:9].float().mean(0), rtol=1e-6, atol=1e-6)


def test_only_rows_by_hidden_numbers_are_kept():
    block = torch.nn.Identity()
    capture = HiddenStateCapture(block, num_tokens=4)
    spans, ids_T, _ = spans_of(make_rows())
    capture.arm(spans, None)
    block(torch.randn(1, len(ids_T), HIDDEN))
    for state in capture.take():
        assert state.untyped_storage().nbytes() == 2 * len(spans.row_start) * HIDDEN * 4


def test_capture_says_what_went_wrong():
    block = torch.nn.Identity()
    capture = HiddenStateCapture(block, num_tokens=4)
    spans, ids_T, _ = spans_of(make_rows())
    block(torch.randn(1, 3, HIDDEN))  # not armed: nothing happens
    with pytest.raises(RuntimeError, match="did not run"):
        capture.take()
    capture.arm(spans, None)
    with pytest.raises(RuntimeError, match="did not run"):
        capture.take()
    block(torch.randn(1, len(ids_T), HIDDEN))
    with pytest.raises(RuntimeError, match="ran twice"):
        block(torch.randn(1, len(ids_T), HIDDEN))


def test_blocks_that_cannot_be_found():
    with pytest.raises(ValueError, match="looked for one list of 3 decoder blocks"):
        find_blocks(torch.nn.Sequential(torch.nn.Linear(2, 2)), 3)
    with pytest.raises(ValueError, match="looked for one list of 5"):
        find_blocks(make_model(), 5)


@pytest.mark.parametrize(
    ("block", "layers", "index"), [(19 / 36, 36, 19), (19 / 36, 4, 2), (0.0, 4, 0), (0.99, 4, 3), (3, 4, 3)]
)
def test_block_as_index_or_fraction(block, layers, index):
    assert resolve_block(block, layers) == index


@pytest.mark.parametrize("block", [4, -1, 1.0, -0.1])
def test_block_out_of_range(block):
    with pytest.raises(ValueError, match="block"):
        resolve_block(block, 4)


def test_spans():
    spans, _, _ = spans_of(make_rows())
    assert (spans.state_end - spans.prompt_end).tolist() == [8, 1, 9, 5, 7, 1]
    assert spans.has_think.tolist() == [True, False, True, True, False, True]
    nothing = token_spans(torch.arange(6), torch.tensor([0, 6]), torch.tensor([4]), None)
    assert nothing.state_end.tolist() == [6] and not nothing.has_think.any()
