"""The benchmark of trainer modes: each of its runs composes and is admitted; what it counts."""

import argparse

import pytest
import yaml

from benchmarks.modes import MODES, main, measured, parser, run_file, table
from launch.compose import resolved
from launch.runfile import load
from recipe.poise.compare.readers import Run
from recipe.poise.config import check_config, check_types


@pytest.fixture
def options(tmp_path) -> argparse.Namespace:
    return parser().parse_args(["--out", str(tmp_path), "--task", "quickstart"])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("method", "bypass"), [("poise", False), ("poise", True), ("grpo", True)])
def test_a_run_composes_and_is_admitted(options, mode, method, bypass, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run_file(options, mode, method, bypass)))
    config = resolved(load(tmp_path / "run.yaml"), cluster=False)
    (check_config if method == "poise" else check_types)(config)
    assert config.trainer.v1.trainer_mode == mode
    assert bool(config.algorithm.rollout_correction.bypass_mode) == bypass
    assert config.data.train_batch_size * config.actor_rollout_ref.rollout.n == 32
    if mode == "separate_async":
        devices = (config.trainer.n_gpus_per_node, config.actor_rollout_ref.rollout.n_gpus_per_node)
        assert devices == (1, 1) and config.ray_kwargs.ray_init.num_gpus == 2


def test_a_folder_of_other_options_is_left_alone(tmp_path, capsys):
    (tmp_path / "sync_poise_pass.yaml").write_text("name: other")
    assert main(["--out", str(tmp_path), "--modes", "sync"]) == 2
    assert "another --out" in capsys.readouterr().err
    assert (tmp_path / "sync_poise_pass.yaml").read_text() == "name: other"


def test_the_first_steps_do_not_count(tmp_path):
    steps = {n: {"timing_s/step": float(n), "timing_s/gen": 1.0, "rollout/generated_tokens": 10.0} for n in range(1, 7)}
    values = measured(Run(tmp_path, "poise", 0, steps), 2)
    assert (values["step"], values["updates"], values["gen"]) == (4.5, 4, 1.0)
    found = {("sync", "poise", False): values, ("sync", "poise", True): values | {"step": 9.0}}
    assert table(found).splitlines()[3].startswith("| sync | poise | no | 9.00 | 2.00 | 10 |")
