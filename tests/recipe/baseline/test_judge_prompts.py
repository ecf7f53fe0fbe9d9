"""The seat's part in choosing, in real processes over gloo: candidates are judged as by one rank, however they were
spread and padded; what was learned is in the checkpoint."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

ROOT = Path(__file__).parents[3]
WIDTH, PROMPTS, ROLLOUTS = 6, 16, 2


def step_rows(step):
    """Row ids with groups, domains and failures (R, 4), features, rewards and energies of a step's rollouts."""
    noise = torch.Generator().manual_seed(step)
    state_GD = torch.randn(PROMPTS, WIDTH, generator=noise)
    group_R = torch.arange(PROMPTS).repeat_interleave(ROLLOUTS)
    reward_R = (torch.rand(len(group_R), generator=noise) < (3 * state_GD[group_R, 0]).sigmoid()).float()
    response_RD = torch.randn(len(group_R), WIDTH, generator=noise)
    row_R4 = torch.stack([torch.arange(len(group_R)), group_R, group_R * 0, group_R * 0], dim=1)
    weight_R2 = torch.rand(len(group_R), 2, generator=noise) + 0.5
    return row_R4, torch.cat([state_GD[group_R], response_RD], dim=1), reward_R, weight_R2


def candidates():
    return torch.randn(11, WIDTH, generator=torch.Generator().manual_seed(77))


def worker(rank, ranks, folder):
    from tensordict import TensorDict

    from recipe.poise.baseline.worker import configured
    from recipe.poise.capture.engine import ROW_FIELD
    from recipe.poise.capture.stream import STREAM, CaptureSettings
    from recipe.poise.config import PoiseConfig

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{ranks}", rank=rank, world_size=ranks)
    poise = PoiseConfig(
        signals=(), probe={"min_rows": 16, "exact_features": 64}, select={"candidates": 4}, weights="energy"
    )
    capture = CaptureSettings(0.5, 3, poise.states, (), None, (1,), 32)
    STREAM.hidden_size, STREAM.device, STREAM.dp_rank = WIDTH, "cpu", rank
    seat = configured(poise, capture, ROLLOUTS)(None)
    said = []

    def judge():
        state_CD = candidates()
        mine = torch.arange(len(state_CD)).tensor_split(ranks)[rank]
        STREAM.append_prompts(torch.cat([mine, torch.tensor([-1 - rank])]), torch.cat([state_CD[mine], state_CD[:1]]))
        said.append(seat.judge_prompts(torch.zeros(len(state_CD), dtype=torch.int64)))

    judge()
    for step in range(6):
        row_R4, feature_RF, reward_R, weight_R2 = step_rows(step)
        spread = torch.randperm(len(row_R4), generator=torch.Generator().manual_seed(step)).tensor_split(ranks)[rank]
        STREAM.append(row_R4[spread, 0], feature_RF[spread], weight_R2[spread], 0.0)
        ids = torch.nested.as_nested_tensor([torch.zeros(3, dtype=torch.int64)] * len(spread), layout=torch.jagged)
        data = {ROW_FIELD: row_R4[spread], "rm_scores": reward_R[spread].unsqueeze(1), "input_ids": ids}
        seat.infer_batch(TensorDict(data, batch_size=len(spread)))
        out = seat.train_mini_batch(TensorDict({ROW_FIELD: row_R4[spread]}, batch_size=len(spread)))
    metrics = out["metrics"]
    judge()
    seat.save_checkpoint(f"{folder}/saved{ranks}")
    dist.barrier()
    other = configured(poise, capture, ROLLOUTS)(None)
    other.load_checkpoint(f"{folder}/saved{ranks}")
    seat = other
    judge()
    if rank == 0:
        names = [name for name in metrics if name.startswith("prompt_")]
        torch.save((said, {name: metrics[name][0] for name in names}), f"{folder}/{ranks}.pt")
    else:
        assert said == [None] * 3
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """Tables (11, 5) before learning, after, and after a reload, and metrics of the last step; by number of ranks."""
    folder = tmp_path_factory.mktemp("judged")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "VERL_PLATFORM": "cpu"}
    for ranks in (1, 2):
        processes = [
            subprocess.Popen([sys.executable, __file__, str(rank), str(ranks), str(folder)], env=environment)
            for rank in range(ranks)
        ]
        assert [process.wait(timeout=240) for process in processes] == [0] * ranks
    return {ranks: torch.load(folder / f"{ranks}.pt", weights_only=True) for ranks in (1, 2)}


def test_nothing_is_known_at_first_and_open_prompts_later(judged):
    (first, later, _), metrics = judged[1]
    assert first.isnan().all() and first.shape == (11, 5)
    rate_C = (3 * candidates()[:, 0]).sigmoid()
    assert float(torch.corrcoef(torch.stack([later[:, 0], rate_C]))[0, 1]) > 0.8
    assert later.isfinite().all() and metrics["prompt_window_rows"] == 6 * PROMPTS
    assert {"prompt_correlation", "prompt_mae", "prompt_weight_probe"} <= set(metrics)


def test_two_ranks_judge_as_one(judged):
    for one, two in zip(judged[1][0], judged[2][0], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_a_checkpoint_judges_the_same(judged):
    for tables, _ in judged.values():
        torch.testing.assert_close(tables[1], tables[2])


if __name__ == "__main__":
    import verl  # noqa: F401  the plug-in registers the platform

    worker(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
