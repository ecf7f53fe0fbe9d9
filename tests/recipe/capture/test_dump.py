"""Feature dumps: several blocks and poolings of one pass, and prompts known again by their token ids."""

from pathlib import Path

import pytest
import torch
import transformers as hf

from recipe.poise.capture.dump import DumpCapture, DumpSettings, dump_layout, prompt_hash
from recipe.poise.capture.hook import HiddenStateCapture, find_blocks, token_spans
from recipe.poise.capture.signals import SIGNALS
from recipe.poise.capture.stream import FeatureStream

LAYERS, HIDDEN = 3, 32


def packed(rows):
    """Token ids and spans of rows given as (prompt ids, response ids)."""
    ids_T = torch.tensor([token for prompt, response in rows for token in (*prompt, *response)])
    offsets = torch.tensor([0, *(len(p) + len(r) for p, r in rows)]).cumsum(0)
    return ids_T, token_spans(ids_T, offsets, torch.tensor([len(r) for _, r in rows]), None)


def hashes(*prompts, response=(7, 8)):
    return prompt_hash(*packed([(prompt, response) for prompt in prompts])).tolist()


def test_equal_prompts_have_equal_hashes_wherever_they_stand():
    alone = hashes((3, 4, 5))
    among = hashes((9, 9), (3, 4, 5), (1,), (3, 4, 5), response=(1, 2, 3))
    assert among[1] == among[3] == alone[0]


def test_other_prompts_have_other_hashes():
    prompts = [(1, 2, 3), (3, 2, 1), (1, 2), (1, 2, 3, 0), (0, 1, 2, 3), (1, 3, 2), (2, 2, 2)]
    prompts += [tuple(row) for row in torch.cartesian_prod(*[torch.arange(4, 14)] * 4).tolist()]
    assert len(set(hashes(*prompts))) == len(prompts)


@torch.no_grad()
def test_all_places_are_read_in_one_pass():
    torch.manual_seed(0)
    config = hf.Qwen3Config(
        vocab_size=60, hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, attn_implementation="sdpa",
    )  # fmt: skip
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    places = DumpSettings(folder="x", blocks=(2, 0), num_tokens=(4, 2)).places(1, 9, LAYERS)
    assert places == ((0, 2), (0, 4), (2, 2), (2, 4))
    dump = DumpCapture(find_blocks(model, LAYERS), places, HiddenStateCapture)
    ids_T, spans = packed([((5, 6, 7, 8, 9), (10, 11, 12)), ((13, 14), (15, 16, 17, 18, 19, 20))])
    positions = torch.cat([torch.arange(8), torch.arange(8)])
    seen = {}
    for block in (0, 2):
        find_blocks(model, LAYERS)[block].register_forward_hook(
            lambda m, a, out, block=block: seen.update({block: out})
        )
    dump.arm(spans, None)
    model(input_ids=ids_T[None], position_ids=positions[None], attention_mask=None, use_cache=False)
    found = dump.take()
    layout = dump_layout(places, HIDDEN)
    for block, tokens in places:
        out = seen[block][0] if isinstance(seen[block], tuple) else seen[block]
        hidden_TD = out.reshape(-1, HIDDEN)
        for row, (start, middle, end) in enumerate(((0, 5, 8), (8, 10, 16))):
            for kind, a, b in (("prompt", start, middle), ("response", middle, end)):
                expected = hidden_TD[max(a, b - tokens) : b].mean(0)
                part = found[row, layout.slices[f"{kind}@{block}/{tokens}"]]
                torch.testing.assert_close(part, expected, rtol=1e-5, atol=1e-5)


def test_layout_names_all_signals_and_the_reward():
    layout = dump_layout(((1, 10),), 6)
    assert layout.names == ("prompt@1/10", "response@1/10", *SIGNALS, "reward")
    assert layout.num_features == 12 + len(SIGNALS) + 1


def test_the_stream_finds_dumped_rows_in_the_order_asked_for():
    stream = FeatureStream()
    assert stream.lookup_dump(torch.tensor([0])) is None
    for ids in ([3, 1], [2]):
        id_R = torch.tensor(ids)
        stream.append(id_R, torch.zeros(len(ids), 1), torch.ones(len(ids), 2), 0.0)
        stream.append_dump(id_R.float().unsqueeze(1), id_R * 10)
    feature_NF, prompt_N = stream.lookup_dump(torch.tensor([1, 2, 3]))
    assert feature_NF.flatten().tolist() == [1, 2, 3] and prompt_N.tolist() == [10, 20, 30]
    stream.clear()
    assert stream.lookup_dump(torch.tensor([1])) is None


@pytest.mark.parametrize(("settings", "message"), [({"every": 0}, "every=0"), ({"num_tokens": (4, 0)}, "num_tokens")])
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        DumpSettings(**settings)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written to"):
        DumpSettings(folder=str(tmp_path / "file" / "dump")).check_folder()
    DumpSettings(folder=str(tmp_path / "new" / "dump")).check_folder()
    assert list((tmp_path / "new/dump").iterdir()) == []
