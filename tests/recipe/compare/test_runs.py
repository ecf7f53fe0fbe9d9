"""The comparison's run files: each method composes, with one budget and one seed for all."""

import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from launch.compose import resolved
from launch.runfile import ROOT, load
from probe import FeatureLayout
from probe.estimators import make_estimator
from recipe.poise.compare.matrix import SEED, TASK
from recipe.poise.config import check_config
from recipe.poise.quickstart.registry import TASKS

FOLDER = ROOT / "launch/runs/compare"
METHODS = sorted(path.stem for path in FOLDER.glob("[!_]*.yaml"))
ESTIMATORS = {
    "dapo": ("grpo", 8), "grpo": ("grpo", 8), "poise": ("poise", 2), "poise_n1": ("poise", 1),
    "poise_uniform": ("poise", 2), "energy_constant": ("poise", 1), "energy_rloo": ("poise", 8),
    "poise_paper_form": ("poise", 2), "poise_select": ("poise", 2), "energy_constant_select": ("poise", 1),
    "poise_n1_select": ("poise", 1), "opo": ("opo", 8), "otb": ("otb", 8),
    "ppo": ("gae", 1),
    "reinforce_pp": ("reinforce_plus_plus_baseline", 8), "rloo": ("rloo", 8), "spo": ("spo", 1),
}  # fmt: skip


def test_every_method_is_known():
    assert METHODS == sorted(ESTIMATORS)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_composes_with_the_common_budget(method, monkeypatch, tmp_path):
    monkeypatch.setenv(SEED, "3")
    monkeypatch.setenv("POISE_RUNS", str(tmp_path))
    run = load(FOLDER / f"{method}.yaml")
    config = resolved(run, cluster=False)
    assert run.name == run.root.name == f"{method}_s3"
    # numbers, not text: torch's generators take nothing else
    assert [config.data.seed, config.actor_rollout_ref.rollout.seed, config.poise.seed] == [3, 3, 3]
    assert config.poise.select.seed == 3 and config.poise.select.candidates == (4 if method.endswith("_select") else 1)
    rollout, actor = config.actor_rollout_ref.rollout, config.actor_rollout_ref.actor
    assert (config.algorithm.adv_estimator, rollout.n) == ESTIMATORS[method]
    assert config.data.train_batch_size * rollout.n == actor.ppo_mini_batch_size * rollout.n == 32
    assert config.critic.enable == (config.algorithm.adv_estimator in ("poise", "gae"))
    assert bool(config.algorithm.filter_groups and config.algorithm.filter_groups.enable) == (method == "dapo")
    if config.algorithm.adv_estimator == "poise":
        check_config(config)


ONE_CHANGE = {
    "ablation/poise_lagged": {"poise.fit"},
    "ablation/poise_fresh_uniform": {"poise.weights"},
    "ablation/poise_lagged_select": {"poise.fit", "poise.select.candidates"},
    "ablation/poise_fresh_uniform_select": {"poise.weights", "poise.select.candidates"},
    "ablation/poise_uniform_select": {"poise.weights", "poise.fit", "poise.select.candidates"},
    "ablation/poise_unguarded": {"poise.probe.guard"},
    "ablation/poise_sibling_reward": {"poise.signals"},
    "ablation/poise_adaptive": {"poise.rollouts"},
    "modes/poise_bypass": {"algorithm.rollout_correction.bypass_mode", "poise.states", "poise.signals"},
    "modes/poise_colocate_async": {"trainer.v1.trainer_mode"},
    "modes/poise_separate_async": {
        "trainer.v1.trainer_mode", "trainer.v1.separate_async.parameter_sync_step",
        "actor_rollout_ref.hybrid_engine", "actor_rollout_ref.rollout.checkpoint_engine.backend",
    },
}  # fmt: skip
# what `launch` makes of a run file's devices
DEVICES = (
    "actor_rollout_ref.rollout.nnodes",
    "actor_rollout_ref.rollout.n_gpus_per_node",
    "ray_kwargs.ray_init.num_gpus",
)


def leaves(config: object, at: str = "") -> dict[str, str]:
    """Dotted name -> text of its value; lists are values."""
    if isinstance(config, dict):
        return {name: text for key, value in config.items() for name, text in leaves(value, f"{at}{key}.").items()}
    return {at[:-1]: str(config)}


def test_every_further_run_file_says_what_it_changes():
    assert {str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.glob("*/*.yaml")} == set(ONE_CHANGE)


@pytest.mark.parametrize("file", sorted(ONE_CHANGE))
def test_an_ablation_or_mode_is_poise_but_for_what_it_is_named_after(file, monkeypatch, tmp_path):
    monkeypatch.setenv("POISE_RUNS", str(tmp_path))
    run = load(FOLDER / f"{file}.yaml")
    assert run.name == f"{file.split('/')[1]}_s0"
    config = resolved(run, cluster=False)
    check_config(config)
    plain = load(FOLDER / "poise.yaml")
    of = [
        {name: text.replace(one.name, "RUN") for name, text in leaves(OmegaConf.to_container(found)).items()}
        for one, found in ((run, config), (plain, resolved(plain, cluster=False)))
    ]
    changed = {name for name in of[0] | of[1] if of[0].get(name) != of[1].get(name)}
    assert changed - set(DEVICES) == ONE_CHANGE[file]


def test_the_task_changes_the_config_and_the_folder_and_nothing_else(monkeypatch, tmp_path):
    monkeypatch.setenv("POISE_RUNS", str(tmp_path))
    runs = {}
    for task in TASKS:
        monkeypatch.setenv(TASK, task)
        runs[task] = load(FOLDER / "poise.yaml")
        assert runs[task].root == tmp_path / "compare" / task / "poise_s0"
        assert f"--task {task} --seed 0 --model-seed 0" in runs[task].prepare[0]
    configs = {task: resolved(run, cluster=False) for task, run in runs.items()}
    assert [config.data.max_response_length for config in configs.values()] == [64, 192, 64]
    assert len({config.data.train_batch_size for config in configs.values()}) == 1


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("poise", ("energy", "fresh", "subspace_ridge", "combine", 0)),
        ("poise_uniform", ("uniform", "lagged", "subspace_ridge", "combine", 0)),
        ("energy_constant", ("energy", "fresh", "subspace_ridge", "constant", 0)),
        ("energy_rloo", ("energy", "fresh", "subspace_ridge", "rloo", 0)),
        ("poise_select", ("energy", "fresh", "subspace_ridge", "combine", 0)),
        ("energy_constant_select", ("energy", "fresh", "subspace_ridge", "constant", 0)),
        ("poise_paper_form", ("uniform", "lagged", "pca_ridge", "off", 16)),
    ],
)
def test_the_forms_of_poise_differ_in_what_they_are_named_after(method, expected):
    poise = check_config(resolved(load(FOLDER / f"{method}.yaml"), cluster=False))
    assert (poise.weights, poise.fit, poise.probe.kind, poise.probe.guard, poise.probe.min_updates) == expected
    if method == "poise_paper_form":
        assert make_estimator(poise.probe, FeatureLayout(("state",), (8,))).alpha == 100.0


def test_reports_do_not_wait_for_torch():
    """They read numbers; torch and transformers are seven seconds of every command."""
    program = "import sys, recipe.poise.compare.__main__; print('torch' in sys.modules, 'transformers' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert result.stdout.split() == ["False", "False"], result.stderr
