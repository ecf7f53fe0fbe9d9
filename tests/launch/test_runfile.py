"""The run file: every fault is named with its key and remedy; every run file of the project composes against verl."""

from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from launch.attempt import trainer_environment, worker_overrides
from launch.compose import override, resolved, training_arguments
from launch.environment import COMMON, CPU, public_environment, secrets, write_public
from launch.ports import EPHEMERAL_START, Ports
from launch.runfile import ROOT, RunFile, RunFileError, load
from recipe.poise.capture.hook import resolve_block
from recipe.poise.config import check_config
from recipe.poise.data.catalogue import CATALOGUE, MATH_SUITES
from reward.router import find_route

RUNS = sorted(path.name for path in (ROOT / "launch/runs").glob("[!_]*.yaml"))


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


GOOD = "name: a\nconfig: poise_paper\n"


@pytest.mark.parametrize("name", RUNS)
def test_every_run_file_composes_against_verl(name):
    run = load(name)
    config = resolved(run, cluster=run.nodes > 1)
    assert run.name == Path(name).stem
    assert (config.trainer.nnodes, config.trainer.n_gpus_per_node) == run.training
    assert "file" in config.trainer.logger and config.trainer.max_actor_ckpt_to_keep == 2
    rollouts = config.data.train_batch_size * config.actor_rollout_ref.rollout.n
    mini = config.actor_rollout_ref.actor.ppo_mini_batch_size * config.actor_rollout_ref.rollout.n
    assert rollouts % run.devices == 0 and mini % run.devices == 0 and rollouts % mini == 0
    if config.algorithm.adv_estimator == "poise":
        check_config(config)


@pytest.mark.parametrize("method", ["poise", "dapo"])
@pytest.mark.parametrize(
    ("shape", "training", "generating"), [("1x8", (1, 4), (1, 4)), ("4x8", (2, 8), (2, 8))], ids=["1x8", "4x8"]
)
def test_devices_that_train_and_devices_that_generate_are_the_runs(method, shape, training, generating):
    run = load(f"qwen3_4b_{method}_async_{shape}")
    config = resolved(run, cluster=run.nodes > 1)
    rollout = config.actor_rollout_ref.rollout
    assert (run.training, run.generating) == (training, generating)
    assert (config.trainer.nnodes, config.trainer.n_gpus_per_node) == training
    assert (rollout.nnodes, rollout.n_gpus_per_node) == generating
    assert run.devices == training[0] * training[1]  # FSDP's
    assert run.devices + generating[0] * generating[1] == run.nodes * run.gpus_per_node
    assert config.trainer.v1.trainer_mode == "separate_async" and not config.actor_rollout_ref.hybrid_engine
    # a step has as many rollouts, and as many updates, as the same method's on devices that do both
    other = resolved(load(f"qwen3_4b_{method}_{shape}"), cluster=run.nodes > 1)
    for key in ("data.train_batch_size", "actor_rollout_ref.actor.ppo_mini_batch_size", "actor_rollout_ref.rollout.n"):
        assert OmegaConf.select(config, key) == OmegaConf.select(other, key)
    assert rollout.calculate_log_probs  # what the correction is made of


def test_a_rollout_pool_on_a_cpu_gets_logical_devices(tmp_path):
    gloo = "actor_rollout_ref.rollout.checkpoint_engine.backend"
    batch = "actor_rollout_ref.actor.ppo_mini_batch_size"
    text = (
        f"base: {ROOT}/launch/runs/cpu_poise.yaml\nname: a\ngpus_per_node: 3\nrollout: {{gpus_per_node: 2}}\n"
        f"overrides: {{{gloo}: gloo, {batch}: 8}}\n"
    )
    config = resolved(load(write(tmp_path, text)), cluster=False)
    assert (config.trainer.n_gpus_per_node, config.actor_rollout_ref.rollout.n_gpus_per_node) == (1, 2)
    assert config.ray_kwargs.ray_init.num_gpus == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rollout: {nodes: 1}\n", "leave devices that train"),
        ("gpus_per_node: 2\nrollout: {gpus_per_node: 2}\n", "leave devices that train"),
        ("nodes: 2\ngpus_per_node: 2\nrollout: {nodes: 1, gpus_per_node: 1}\n", "set nodes, .* or gpus_per_node"),
    ],
)
def test_pools_that_do_not_add_up(tmp_path, text, message):
    with pytest.raises(RunFileError, match=message):
        load(write(tmp_path, GOOD + text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("overrides: {trainer.v1.trainer_mode: separate_async}\n", "data.train_batch_size=256, .*one of the others"),
        ("overrides: {actor_rollout_ref.rollout.nnodes: 1}\n", "set its key rollout instead"),
    ],
)
def test_the_check_of_separate_async_is_the_launchers_too(tmp_path, text, message):
    with pytest.raises(RunFileError, match=message):
        resolved(load(write(tmp_path, GOOD + "nodes: 1\ngpus_per_node: 2\n" + text)), cluster=False)


@pytest.mark.parametrize(
    ("name", "nodes", "gpus", "layers", "block"),
    [
        ("qwen3_4b_poise_1x2", 1, 2, 36, 19),
        ("qwen3_4b_poise_1x8", 1, 8, 36, 19),
        ("qwen3_4b_poise_4x8", 4, 8, 36, 19),
        ("r1_distill_1p5b_poise_1x2", 1, 2, 28, 15),
    ],
)
def test_the_papers_settings(name, nodes, gpus, layers, block):
    run = load(name)
    assert (run.nodes, run.gpus_per_node) == (nodes, gpus)
    config = resolved(run, cluster=nodes > 1)
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert (config.data.train_batch_size, rollout.n, config.trainer.total_training_steps) == (256, 2, 200)
    assert (config.data.max_prompt_length, config.data.max_response_length) == (4096, 8192)
    assert (actor.ppo_mini_batch_size, actor.ppo_epochs, actor.ppo_max_token_len_per_gpu) == (32, 1, 24576)
    optim = actor.optim
    assert (optim.lr, optim.lr_warmup_steps, optim.weight_decay, list(optim.betas)) == (1e-6, 10, 0.01, [0.9, 0.999])
    assert (optim.lr_scheduler_type, actor.grad_clip, actor.loss_agg_mode) == ("constant", 1.0, "token-mean")
    assert (actor.clip_ratio_low, actor.clip_ratio_high, actor.clip_ratio_c) == (0.2, 0.28, 10.0)
    assert (actor.use_kl_loss, actor.entropy_coeff, config.algorithm.use_kl_in_reward) == (False, 0, False)
    assert (rollout.temperature, rollout.top_p) == (1.0, 1.0)
    assert (rollout.val_kwargs.temperature, rollout.val_kwargs.top_p) == (0.6, 0.95)
    assert (rollout.prompt_length, rollout.response_length, rollout.top_k) == (4096, 8192, -1)
    model = config.actor_rollout_ref.model
    assert model.enable_gradient_checkpointing and model.use_remove_padding and actor.use_dynamic_bsz
    assert (actor.strategy, actor.fsdp_config.dtype, rollout.dtype) == ("fsdp2", "bfloat16", "bfloat16")
    assert resolve_block(config.poise.block, layers) == block
    assert (config.poise.num_tokens, config.poise.probe.window_rows) == (10, 4096)
    assert list(config.poise.states) == ["prompt", "response"]
    assert list(config.poise.signals) == ["entropy_response", "entropy_reasoning", "entropy_answer"]
    # rewards of 0 and 1, on the data that the data program makes
    reward = config.reward.custom_reward_function
    assert (Path(reward.path), reward.name) == (ROOT / "reward/router.py", "compute_score")
    files = [config.data.train_files, *config.data.val_files]
    assert [Path(file).parts[-2] for file in files] == ["dapo-math-17k", *MATH_SUITES]
    for file in files:
        entry = CATALOGUE[Path(file).parts[-2]]
        assert Path(file).stem in entry.splits and find_route(entry.data_source or "math_dapo")[0] == "math"


def test_the_launcher_sees_the_config_that_the_entry_sees():
    """The entry finds verl's configs by importing verl, the launcher by its folder."""
    from hydra import compose, initialize_config_dir

    run = load("qwen3_4b_poise_1x2")
    ours = resolved(run, cluster=False)
    arguments = [item for item in training_arguments(run, cluster=False)[2:] if not item.startswith("hydra.")]
    with initialize_config_dir(str(ROOT / "recipe/poise/config"), version_base=None):
        assert compose("poise_paper", overrides=arguments) == ours


def test_a_cluster_is_told_what_belongs_to_the_attempt(tmp_path, monkeypatch):
    """verl's loop runs in a Ray worker there, which has its node's environment."""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:20000")
    monkeypatch.setenv("TENSORBOARD_DIR", "/mine/a=b, c")
    run = load("cpu_poise_2x1")
    env = trainer_environment(run, tmp_path, "run-1", cluster=True)
    run = run.model_copy(update={"hydra": worker_overrides(run, env)})
    assert resolved(run, cluster=True).ray_kwargs.ray_init.runtime_env.env_vars == {
        "VERL_FILE_LOGGER_PATH": str(tmp_path / "metrics.jsonl"),
        "WANDB_RUN_ID": "run-1",
        "WANDB_RESUME": "allow",
        "SWANLAB_RUN_ID": "run-1",
        "SWANLAB_RESUME": "allow",
        "POISE_TRACKING_ID": "run-1",
        "TENSORBOARD_DIR": "/mine/a=b, c",
    }
    # Ray refuses a name that both the job and ray.init have
    named = run.model_copy(update={"env": {"WANDB_RUN_ID": "mine"}})
    assert not [item for item in worker_overrides(named, env) if "WANDB_RUN_ID" in item]


def flat(node, prefix="") -> dict:
    found = {}
    for key, value in node.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def test_the_difference_between_poise_and_dapo_is_the_experiment():
    poise, dapo = (
        flat(OmegaConf.to_container(resolved(load(f"qwen3_4b_{method}_1x8"), cluster=False), resolve=True))
        for method in ("poise", "dapo")
    )
    differ = {key for key in poise.keys() | dapo.keys() if poise.get(key) != dapo.get(key)}
    differ = {key for key in differ if not key.startswith(("critic.", "trainer."))}
    differ = {key for key in differ if not key.endswith(("rollout_n", "experiment_name"))}
    assert differ == {
        "algorithm.adv_estimator",
        "algorithm.filter_groups.enable",
        "algorithm.filter_groups.metric",
        "algorithm.filter_groups.max_inflight_gen_batches",
        "data.train_batch_size",
        "actor_rollout_ref.actor.ppo_mini_batch_size",
        "actor_rollout_ref.rollout.n",
        "reward.reward_manager.name",
        "reward.reward_kwargs.overlong_buffer_cfg.enable",
        "reward.reward_kwargs.overlong_buffer_cfg.len",
        "reward.reward_kwargs.overlong_buffer_cfg.penalty_factor",
        "reward.reward_kwargs.overlong_buffer_cfg.log",
        "reward.reward_kwargs.max_resp_len",
    }
    # verl's V1 trainer ignores the legacy places of these keys
    assert dapo["reward.reward_manager.name"] == "dapo" and dapo["reward.reward_kwargs.max_resp_len"] == 8192
    assert dapo["algorithm.filter_groups.metric"] == "acc" and dapo["critic.enable"] is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD + "nodez: 2\n", r"unknown key nodez; known: name, config"),
        (GOOD + "slurm: {partion: gpu}\n", r"unknown key slurm.partion; known: account, partition"),
        (GOOD + "slurm: {environment: {sif: a}}\n", r"unknown key slurm.environment.sif; known: kind"),
        ("config: poise_paper\n", r"name is missing"),
        ("name: a b\nconfig: c\n", r"name: use letters"),
        (GOOD + "nodes: 0\n", r"nodes: .*greater than or equal to 1"),
        (GOOD + "nodes: many\n", r"nodes: .*found 'many'"),
        (GOOD + "accelerator: tpu\n", r"accelerator: .*'gpu' or 'cpu'"),
        (GOOD + "ports: {base: 32000}\n", r"ephemeral range.*lower base to at most"),
        (GOOD + "slurm: {time: 1:30:00}\n", r"slurm.time"),
        (GOOD + "slurm: {environment: {kind: pyxis}}\n", r"pyxis needs image"),
        (GOOD + "folder: ${oc.env:NO_SUCH_VARIABLE_HERE}\n", r"NO_SUCH_VARIABLE_HERE"),
        (GOOD + "base: other.yaml\n", r"other.yaml does not exist, named as base in .*run.yaml"),
        (GOOD + "base: run.yaml\n", r"bases form a circle"),
        (GOOD + "base: [a]\n", r"base: want the path of a run file.*found \['a'\]"),
        (GOOD + "base: ${nope}\n", r"Interpolation key 'nope' not found"),
        (GOOD + "base: list.yaml\n", r"a mapping here and something else in its base"),
        (GOOD + "nodes: true\n", r"nodes: want a number, not true or false"),
        (GOOD + "preflight: {min_device_gb: .nan}\n", r"preflight.min_device_gb: .*equal to 0 \(found nan\)"),
        (GOOD + "preflight: {min_folder_gb: -1}\n", r"preflight.min_folder_gb: .*greater than or equal to 0"),
        (GOOD + "preflight: {max_clock_skew_s: .inf}\n", r"preflight.max_clock_skew_s: .*finite number"),
        (GOOD + "waits: {silence_s: 1" + "0" * 30 + "}\n", r"waits.silence_s: .*less than or equal to 1000000000"),
        (GOOD + "slurm: {gpu_option: '{'}\n", r"slurm.gpu_option: .*--gres=gpu:\{n\}"),
        ("- a\n- b\n", r"is a mapping of settings, this is a ListConfig"),
        ("name: [\n", r"not valid YAML"),
    ],
)
def test_faults_are_named(tmp_path, text, message):
    write(tmp_path, "env: [a]\n", "list.yaml")
    text = text + "env: {A: b}\n" if "list.yaml" in text else text
    with pytest.raises(RunFileError, match=message):
        load(write(tmp_path, text))


def test_a_file_that_is_not_there_lists_those_that_are(tmp_path):
    with pytest.raises(RunFileError, match="cpu_poise.yaml.*qwen3_4b_dapo_1x2.yaml"):
        load(tmp_path / "nope.yaml")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"trainer.nnodes": 2}, "set its key nodes instead"),
        ({"trainer.default_local_dir": "/x"}, "set its key folder instead"),
        ({"trainer.max_actor_ckpt_to_keep": 1}, "a crash in between leaves none"),
        ({"trainer.save_freq": -1}, "could not be resumed"),
        ({"algorithm.adv_estimater": "x"}, "adv_estimater"),
        ({"trainer.save_freq": "abc"}, r"trainer.save_freq: want a number of steps \(found 'abc'\)"),
        ({"trainer.save_freq": None}, r"trainer.save_freq: want a number of steps \(found None\)"),
        ({"trainer.save_freq": True}, r"trainer.save_freq: want a number of steps \(found True\)"),
        ({"~trainer.save_freq": None}, r"trainer.save_freq: want a number of steps \(found None\)"),
        ({"trainer.logger": None}, r"trainer.logger: want a string or a list of strings \(found None\)"),
        ({"trainer.logger": [1]}, r"trainer.logger: want a string or a list of strings \(found \[1\]\)"),
        ({"trainer.max_actor_ckpt_to_keep": "two"}, r"max_actor_ckpt_to_keep: want a number of checkpoints, or null"),
        ({"data.train_files": 3}, r"data.train_files: want a string or a list of strings \(found 3\)"),
        ({"actor_rollout_ref.model.path": None}, r"model.path: want a string or a list of strings"),
        ({"actor_rollout_ref.actor.checkpoint.save_contents": None}, r"save_contents: want a string or a list"),
        ({"critic": None}, r"Overrides of whole sections: critic=null"),
        ({"trainer.project_name": {"a b": 1}}, r"overrides: trainer.project_name: the key 'a b': use letters"),
    ],
)
def test_overrides_that_cannot_work(tmp_path, overrides, message):
    run = load(write(tmp_path, GOOD)).model_copy(update={"overrides": overrides})
    with pytest.raises(RunFileError, match=message):
        resolved(run, cluster=False)


def test_unknown_config_and_bad_override(tmp_path):
    with pytest.raises(RunFileError, match="known: .*dapo_paper"):
        resolved(load(write(tmp_path, "name: a\nconfig: nope\n")), cluster=False)
    run = load(write(tmp_path, GOOD)).model_copy(update={"hydra": ["--steps"]})
    with pytest.raises(RunFileError, match="not a Hydra override"):
        training_arguments(run, cluster=False)


def keys(model, prefix: tuple[str, ...] = ()):
    """Of the run file and its sections."""
    for name, field in model.model_fields.items():
        yield (*prefix, name)
        if hasattr(field.annotation, "model_fields"):
            yield from keys(field.annotation, (*prefix, name))


@pytest.mark.parametrize(
    "value",
    [
        "abc", "", None, True, -1, 1.5, float("nan"), float("inf"), 10**400, [], ["a"], [[1]], [None], {}, {"a": 1},
        {1: 2}, "a\nb", "\0", "${nope}", "${now:%Y}", "'", "{",
    ],
    ids=lambda value: repr(value)[:12],
)  # fmt: skip
def test_a_wrong_type_anywhere_is_a_message(tmp_path, value):
    """Read, or refused with the file, the key and, but for interpolations, what was found."""
    for key in [*keys(RunFile), ("base",)]:
        values: dict = {"name": "a", "config": "poise_paper"}
        section = values
        for part in key[:-1]:
            section = section.setdefault(part, {})
        section[key[-1]] = value
        path = write(tmp_path, yaml.safe_dump(values))
        try:
            run = load(path)
        except RunFileError as error:
            text = str(error)
            if f"does not exist, named as base in {path}" in text:
                assert key == ("base",)
                continue
            assert text.startswith(f"{path}:"), text
            where = ".".join(key)
            sections = [where, *([".".join(key[:-1])] if key[-1] in ("image", "kind") else [])]  # those go together
            said = [f"  {name}" for name in sections] + [f"  unknown key {where}."]
            assert any(item in text for item in said) or "base" in key or "${" in str(value), text
        else:
            assert RunFile.from_json(run.to_json()) == run


@pytest.mark.parametrize(
    "value",
    [
        None, True, 0, -3, 1e-6, "plain", "/a/b-c.parquet", "two words", "it's", 'a "b"', "back\\slash", "end\\",
        "a\\'b",
        "true", "null", "5:once", "a=b,c", "x{y}", "[a]", "$HOME", "", ["a b", 1, None], {"k": "v w", "n": [1, 2]},
    ],
)  # fmt: skip
def test_values_survive_hydras_grammar(value):
    parsed = OverridesParser.create().parse_override(override("+a.b", value)).value()
    parsed = parsed.text if hasattr(parsed, "text") else parsed

    def plain(item):
        if isinstance(item, dict):
            return {str(key): plain(part) for key, part in item.items()}
        if isinstance(item, list):
            return [plain(part) for part in item]
        return getattr(item, "text", item)

    assert plain(parsed) == value


def test_a_cluster_gets_no_sizes_for_ray_init():
    config = resolved(load("cpu_poise_2x1"), cluster=True)
    sizes = {key: value for key, value in config.ray_kwargs.ray_init.items() if key != "runtime_env"}
    assert set(sizes.values()) == {None}
    assert resolved(load("cpu_poise"), cluster=False).ray_kwargs.ray_init.num_cpus == 16


def test_a_run_file_survives_json():
    run = load("qwen3_4b_poise_4x8").model_copy(update={"hydra": ["a=b"]})
    assert RunFile.from_json(run.to_json()) == run


def test_port_map():
    ports = Ports()
    options = ports.ray_options(head=True)
    numbers = [int(option.split("=")[1]) for option in options]
    assert len(set(numbers)) == len(numbers) and max(numbers) < EPHEMERAL_START
    assert f"--port={ports.gcs}" in options and f"--port={ports.gcs}" not in ports.ray_options(head=False)


def test_taken_ports_are_found():
    import socket

    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        base = taken.getsockname()[1]
        assert Ports.model_construct(base=base, workers=100).taken()[0] == base


def test_the_environment_is_the_one_of_the_scripts():
    import subprocess

    script = f"set -eu; source {ROOT}/launch/env.sh; poise_export_cpu; env"
    out = subprocess.run(["env", "-i", "PATH=/usr/bin:/bin", "bash", "-c", script], capture_output=True, text=True)
    exported = dict(line.split("=", 1) for line in out.stdout.splitlines() if "=" in line)
    assert {name: exported[name] for name in CPU} == CPU
    text = (ROOT / "launch/env.sh").read_text()
    assert all(f'{name}="${{{name}:-{value}}}"' in text for name, value in COMMON.items())


def test_secrets_are_kept_out(tmp_path, monkeypatch):
    run = load("cpu_poise")
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    with pytest.raises(RunFileError, match=r"would hold the value of \$HF_TOKEN"):
        write_public(tmp_path / "x", "a hf_abcdefghijklmnop b", run)
    assert list(tmp_path.iterdir()) == []
    assert secrets(run).mask("token hf_abcdefghijklmnop\n") == "token ***\n"
    with pytest.raises(RunFileError, match="env.MY_API_KEY looks like a secret"):
        public_environment(run.model_copy(update={"env": {"MY_API_KEY": "x"}}))
