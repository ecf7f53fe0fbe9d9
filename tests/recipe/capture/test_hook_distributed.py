"""Capture in several real processes over gloo: FSDP2, and one sequence sliced over ranks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import transformers as hf
from torch import nn

from recipe.poise.capture.hook import HiddenStateCapture, find_blocks, token_spans

ROOT = Path(__file__).parents[3]
VOCABULARY, LAYERS, HIDDEN, END_THINK, N = 40, 3, 32, 3, 4


def start(worker, world, folder):
    """Run `worker` in `world` processes: this file, as a script."""
    command = [sys.executable, __file__, worker.__name__, str(world), f"file://{folder}/store", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(world)]
    assert [process.wait(timeout=120) for process in processes] == [0] * world


def join(rank, world, store):
    dist.init_process_group("gloo", rank=rank, world_size=world, init_method=store)


def batch(seed):
    """Packed ids, positions, offsets and response lengths of four rows."""
    generator = torch.Generator().manual_seed(seed)
    lengths, responses = torch.tensor([11, 6, 9, 14]), torch.tensor([6, 1, 5, 9])
    ids_T = torch.randint(0, VOCABULARY, (int(lengths.sum()),), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    positions_T = torch.cat([torch.arange(n) for n in lengths.tolist()])
    return ids_T, positions_T, offsets, responses


def make_model():
    torch.manual_seed(0)
    config = hf.Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, attn_implementation="sdpa",
    )  # fmt: skip
    return hf.AutoModelForCausalLM.from_config(config).eval()


@torch.no_grad()
def capture_with(model, seed):
    ids_T, positions_T, offsets, responses = batch(seed)
    capture = HiddenStateCapture(find_blocks(model, LAYERS)[1], N)
    capture.arm(token_spans(ids_T, offsets, responses, END_THINK), None)
    model(input_ids=ids_T[None], position_ids=positions_T[None], attention_mask=None, use_cache=False)
    return capture.take()


def fsdp_rank(rank, world, store, folder):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    join(rank, world, store)
    model, mesh = make_model(), init_device_mesh("cpu", (world,))
    for block in find_blocks(model, LAYERS):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    torch.save(capture_with(model, seed=rank), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [1, 2])
def test_fsdp2_ranks_capture_their_own_rows(world, tmp_path):
    start(fsdp_rank, world, tmp_path)
    for rank in range(world):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for state, expected in zip(found, capture_with(make_model(), seed=rank), strict=True):
            torch.testing.assert_close(state, expected, rtol=1e-5, atol=1e-5)


class Slice(nn.Module):
    """Stands for a block under sequence parallelism: it gives this rank's slice of the padded sequence."""

    def __init__(self, rank, world):
        super().__init__()
        self.rank, self.world = rank, world

    def forward(self, hidden_TD):
        padded = nn.functional.pad(hidden_TD, (0, 0, 0, -len(hidden_TD) % self.world))
        return padded.chunk(self.world)[self.rank].unsqueeze(0)


def hidden_states():
    return torch.randn(40, HIDDEN, generator=torch.Generator().manual_seed(7))


def sliced_rank(rank, world, store, folder):
    join(rank, world, store)
    ids_T, _, offsets, responses = batch(0)
    block = Slice(rank, world)
    capture = HiddenStateCapture(block, N, sp_rank=rank, sp_size=world, sp_group=dist.group.WORLD)
    capture.arm(token_spans(ids_T, offsets, responses, END_THINK), None)
    block(hidden_states())
    torch.save(capture.take(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_a_sequence_sliced_over_ranks_gives_the_whole_states(world, tmp_path):
    ids_T, _, offsets, responses = batch(0)
    assert len(ids_T) == 40
    whole = nn.Identity()
    capture = HiddenStateCapture(whole, N)
    capture.arm(token_spans(ids_T, offsets, responses, END_THINK), None)
    whole(hidden_states().unsqueeze(0))
    expected = capture.take()
    start(sliced_rank, world, tmp_path)
    for rank in range(world):  # every rank holds the completed sums
        for state, other in zip(torch.load(tmp_path / f"{rank}.pt", weights_only=True), expected, strict=True):
            torch.testing.assert_close(state, other, rtol=1e-5, atol=1e-6)


if __name__ == "__main__":
    name, size, store_url, results, own_rank = sys.argv[1:]
    {"fsdp_rank": fsdp_rank, "sliced_rank": sliced_rank}[name](int(own_rank), int(size), store_url, results)
