"""The result does not depend on the number of ranks, nor on how rows are spread: real processes over gloo."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from probe import Crossing, DistributedBank, FeatureLayout, ProbeBank, ProbeSettings

STEPS = 12


def rows_of(step):
    """40 rows of 20 prompts, and two rows of padding."""
    generator = torch.Generator().manual_seed(step)
    rate_R = torch.rand(20, generator=generator).repeat_interleave(2)
    x_RF = 0.2 * torch.randn(42, 13, generator=generator)
    x_RF[:40, :12] += rate_R.unsqueeze(1)
    reward_R = (torch.rand(42, generator=generator) < torch.cat([rate_R, torch.ones(2)])).float()
    id_R = torch.cat([torch.arange(40), torch.tensor([-41, -42])])
    return id_R, x_RF, reward_R, torch.cat([torch.arange(40) // 2, torch.tensor([0, 0])])


def worker(rank, ranks, init_file, out):
    dist.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=ranks)
    settings = ProbeSettings(min_rows=8, window_rows=200, exact_features=4, rank=4)
    layout = FeatureLayout(("prompt", "response", "entropy"), (6, 6, 1))
    plain, weighted, fresh = (
        DistributedBank(ProbeBank(settings, layout, crossing=crossing) if rank == 0 else None)
        for crossing in (Crossing(), Crossing("energy"), Crossing("energy", 0.9, "fresh", ("prompt",)))
    )
    values = []
    for step in range(STEPS):
        rows = rows_of(step)
        # spread in another order each step, unevenly: siblings end up on different ranks
        spread = torch.randperm(42, generator=torch.Generator().manual_seed(step)).tensor_split(ranks)[rank]
        weight_R = 1.0 + 8.0 * (rows[2] < 0.5)
        given = {"weight_R": weight_R[spread]}
        for bank, weights in ((plain, {}), (weighted, given), (fresh, given)):
            said = bank.predict(*(column[spread] for column in rows), **weights)
            values.append((spread, said.table_R6))
            kept = bank.rows
            assert (kept is None) == (rank > 0)
            if kept is not None:  # all ranks' rows in the order of their ids, without padding
                assert torch.equal(kept[0], rows[1][:40]) and torch.equal(kept[1], rows[2][:40])
            metrics = bank.update(step)
            assert bool(metrics) == (rank == 0)
        assert plain.rows is None
        table_RC = plain.collect(torch.full((rank + 1, 2), float(rank)))
        expected = torch.arange(ranks).repeat_interleave(torch.arange(1, ranks + 1)).float().unsqueeze(1).expand(-1, 2)
        assert (table_RC is None) if rank else torch.equal(table_RC, expected)
    torch.save(values, out)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def said():
    """Predictions (3 x STEPS, 42, 6), without weights, with weights, and cross-fitted in turn, by number of ranks."""
    result = {}
    for ranks in (1, 2, 3):
        with tempfile.TemporaryDirectory() as folder:
            outs = [Path(folder) / f"{rank}.pt" for rank in range(ranks)]
            processes = [
                subprocess.Popen([sys.executable, __file__, str(rank), str(ranks), f"{folder}/init", str(outs[rank])])
                for rank in range(ranks)
            ]
            assert [process.wait(timeout=120) for process in processes] == [0] * ranks
            table = torch.zeros(3 * STEPS, 42, 6)
            for out in outs:
                for step, (spread, values) in enumerate(torch.load(out, weights_only=True)):
                    table[step, spread] = values
        result[ranks] = table
    return result


@pytest.mark.parametrize("ranks", [2, 3])
def test_predictions_are_those_of_one_rank(said, ranks):
    for last in (-1, -2, -3):
        assert said[1][last, :, 0].isfinite().all() and said[1][last, :, 0].std() > 0.01
    assert said[1][-2, 0, 4] < 0.5 * said[1][-3, 0, 4]  # the constant: failures weigh nine times as much
    # cross-fitted in the first step already, but for padding
    assert said[1][2, :40, 0].isfinite().all() and said[1][:2, :, 0].isnan().all() and said[1][2, 40:, 0].isnan().all()
    torch.testing.assert_close(said[ranks], said[1], atol=1e-6, rtol=1e-5, equal_nan=True)


def test_a_process_on_its_own_needs_no_group():
    layout = FeatureLayout(("state",), (13,))
    alone, plain = (
        DistributedBank(ProbeBank(ProbeSettings(min_rows=8), layout)),
        ProbeBank(ProbeSettings(min_rows=8), layout),
    )
    for step in range(3):
        id_R, x_RF, reward_R, group_R = rows_of(step)
        said = alone.predict(id_R, x_RF, reward_R, group_R)
        torch.testing.assert_close(said.value_R, plain.predict(x_RF).value_R, equal_nan=True)
        assert alone.update(step)["window_rows"] == 40 * (step + 1)  # padding is not learned
        plain.update(x_RF[:40], reward_R[:40], group_R[:40], step=step)
    with pytest.raises(RuntimeError, match="call predict first"):
        alone.update(9)
    with pytest.raises(ValueError, match="rank 0 brings the bank"):
        DistributedBank(None)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    worker(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
