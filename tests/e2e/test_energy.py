"""A real run with rows weighted by the energy of their scores and values cross-fitted from the first step on."""

import json

import pytest
import torch
from safetensors.torch import load_file

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def run(run_poise, small, assets, tmp_path_factory):
    """Three steps on one rank; the pass knows the exact energy, and the heaviest tenth is cut."""
    return run_poise(
        tmp_path_factory.mktemp("energy"), assets, *small, "poise.weight_cap=0.9",
        "actor_rollout_ref.actor.calculate_sum_pi_squared=True", "trainer.n_gpus_per_node=1",
        "trainer.total_training_steps=3", "trainer.save_freq=3", limit_s=900,
    )  # fmt: skip


def test_the_probe_gives_the_baselines_from_the_first_step(run):
    assert sorted(run.metrics) == [1, 2, 3]
    assert run.metrics[1]["poise/share_probe"] == 1.0
    for number, step in run.metrics.items():
        assert step["poise/rows"] == 32 and step["actor/grad_norm"] > 0
        # absent where all siblings agree, as in any small step: RLOO's error is then zero
        assert ("poise/gradient_variance_ratio" in step) == (step["poise/advantage_variance_rloo"] > 0)
        assert 0 < step["poise/window_rows"] <= number * 32
        assert {"poise/mae", "poise/weight_probe", "poise/error_rloo"} <= set(step)  # honest from the first step on


def test_the_window_holds_what_rows_weigh(run):
    folder = run.checkpoints / "global_step_3/critic"
    manifest = json.loads((folder / "probe.json").read_text())
    assert manifest["identity"]["crossing"] == {
        "weights": "energy", "weight_cap": 0.9, "fit": "fresh", "prompt_blocks": ["prompt"],
        "coherence": 0.1, "surprise": 1.0,
    }  # fmt: skip
    tensors = load_file(folder / "probe.safetensors")
    weight_N, uncapped_N, step_N = (tensors[f"0.window.{name}"] for name in ("weight", "uncapped", "step"))
    assert (uncapped_N >= 0).all() and len(uncapped_N.unique()) > len(uncapped_N) / 2
    assert torch.equal(weight_N[step_N == 1], uncapped_N[step_N == 1])  # nothing earlier to be capped by
    for step in (2, 3):
        earlier_N, now_N = uncapped_N[step_N < step], step_N == step
        cap = torch.quantile(earlier_N.double(), 0.9).float()
        torch.testing.assert_close(weight_N[now_N], uncapped_N[now_N].clamp(max=cap))
