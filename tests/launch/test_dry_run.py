"""What --dry-run writes, compared with golden files; the scripts pass bash -n and shellcheck, and hold no secret.

After a wanted change: POISE_UPDATE_GOLDEN=1 pytest tests/launch/test_dry_run.py, and read the difference.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from launch.cli import cli
from launch.compose import resolved
from launch.manifests import kuberay
from launch.rayjob import VERLS_OWN, runtime_environment
from launch.runfile import ROOT, RunFile, RunFileError, load

GOLDEN = Path(__file__).parent / "golden"
KEY = "secret-0123456789abcdef"
VARIANTS = {
    "venv": "slurm:\n  account: lab\n  partition: gpu\n  qos: high\n  extra: ['--comment=two words']\n"
    "  setup: ['module load cuda']\n  environment: {path: /shared/venv}\ninterface: ib0\n",
    "apptainer": "slurm:\n  environment:\n    kind: apptainer\n    image: /shared/poise.sif\n"
    "    mounts: [/data, '/m:/models']\n    options: [--writable-tmpfs]\n",
    "pyxis": "slurm:\n  gpu_option: '--gres=gpu:{n}'\n  environment:\n    kind: pyxis\n    image: registry/poise:1\n"
    "    mounts: [/data]\n    options: [--no-container-mount-home]\n",
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`launch ARGS`; the tokens of the shell are there."""
    for name in ("WANDB_API_KEY", "HF_TOKEN", "MY_SECRET_THING"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("POISE_RUNS", str(tmp_path))
    for name in ("POISE_DATA", "POISE_MODELS"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments):
        result = CliRunner().invoke(cli, [str(item) for item in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        assert KEY not in result.output
        return result.output

    yield call
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY in path.read_text()]


def compare(name: str, text: str, folder: Path) -> None:
    # the interpreter first: launch/env.sh puts it inside the project
    for found, placeholder in ((sys.executable, "/venv/bin/python"), (str(folder), "/runs"), (str(ROOT), "/project")):
        text = text.replace(found, placeholder)
    path = GOLDEN / name
    if os.environ.get("POISE_UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def check_script(path: Path, shellcheck: str) -> None:
    subprocess.run(["bash", "-n", path], check=True)
    found = subprocess.run([shellcheck, path], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("variant", VARIANTS)
def test_slurm(run, tmp_path, shellcheck, variant):
    path = tmp_path / f"{variant}.yaml"
    path.write_text(f"base: {ROOT}/launch/runs/qwen3_4b_poise_4x8.yaml\nname: {variant}\n{VARIANTS[variant]}")
    out = run("slurm", path, "--dry-run", "trainer.total_training_steps=5")
    script = tmp_path / variant / f"launch/{variant}.sbatch"
    assert f"to start: sbatch {script}" in out
    check_script(script, shellcheck)
    compare(f"{variant}.sbatch", script.read_text(), tmp_path)
    config = yaml.safe_load((tmp_path / variant / "launch/config.yaml").read_text())
    assert config["trainer"]["total_training_steps"] == 5 and config["trainer"]["nnodes"] == 4


def test_local(run, tmp_path, shellcheck):
    run("local", "cpu_poise", "--dry-run", "poise.seed=3")
    script = tmp_path / "cpu_poise/launch/train.sh"
    check_script(script, shellcheck)
    assert os.access(script, os.X_OK)
    compare("train.sh", script.read_text(), tmp_path)


def test_ray(run, tmp_path):
    out = run("ray", "cpu_poise_2x1", "--dry-run")
    env = yaml.safe_load((tmp_path / "cpu_poise_2x1/launch/runtime_env.yaml").read_text())
    assert "ray job submit --address http://HOST:8265 --runtime-env" in out
    assert {".git/", "*.parquet", "*.safetensors", "outputs/"} <= set(env["excludes"])
    # the project is elsewhere on the cluster; data and results are where they are here
    sent = env["env_vars"]["POISE_RUN"]
    assert '"${project:}/reward/reasoning_gym_verifier.py"' in sent and str(tmp_path) in sent
    verifier = RunFile.from_json(sent).overrides["reward.custom_reward_function.path"]
    assert verifier == str(ROOT / "reward/reasoning_gym_verifier.py")
    assert not {"WANDB_API_KEY", "HF_TOKEN"} & set(env["env_vars"])


def test_no_variable_is_in_both_the_job_and_ray_init(monkeypatch):
    """Ray refuses the job then. verl leaves out what the driver has, but not everything."""
    from verl.trainer.constants_ppo import PPO_RAY_RUNTIME_ENV, get_ppo_ray_runtime_env

    names = VERLS_OWN | PPO_RAY_RUNTIME_ENV["env_vars"].keys()
    run = load("qwen3_4b_poise_1x2").model_copy(update={"env": dict.fromkeys(names, "0"), "folder": "/runs/a"})
    ours = runtime_environment(run)["env_vars"]
    for name in names:
        monkeypatch.setenv(name, "0")  # the driver's
    config = resolved(run, cluster=True)
    config.global_profiler.tool = "torch"
    theirs = get_ppo_ray_runtime_env(config)["env_vars"].keys()
    assert not theirs & ours.keys()
    assert theirs | {"TRANSFER_QUEUE_ENABLE"} == VERLS_OWN


def test_kuberay(run, tmp_path):
    run("kuberay", "qwen3_4b_poise_4x8")
    text = (tmp_path / "qwen3_4b_poise_4x8/launch/kuberay.yaml").read_text()
    compare("kuberay.yaml", text, tmp_path)
    manifest = yaml.safe_load(text)
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    cluster = manifest["spec"]["rayClusterSpec"]
    assert cluster["workerGroupSpecs"][0]["replicas"] == 3
    container = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert container["envFrom"] == [{"secretRef": {"name": "poise-secrets"}}]


@pytest.mark.parametrize("name", ["7b", "x" * 48, "a_"])
def test_names_that_kubernetes_refuses(name):
    run = load("qwen3_4b_poise_1x2").model_copy(update={"name": name, "folder": "/runs/a"})
    with pytest.raises(RunFileError, match="as a name in Kubernetes"):
        kuberay(run)


def test_a_manifest_with_paths_of_this_checkout_says_so(run, tmp_path, monkeypatch):
    assert "Set POISE_RUNS, POISE_DATA" in run("kuberay", "qwen3_4b_poise_1x2")
    monkeypatch.setenv("POISE_DATA", "/runs/data")
    assert "warning" not in run("kuberay", "qwen3_4b_poise_1x2")


def test_skypilot(run, tmp_path, shellcheck):
    run("skypilot", "qwen3_4b_poise_4x8")
    text = (tmp_path / "qwen3_4b_poise_4x8/launch/skypilot.yaml").read_text()
    task = yaml.safe_load(text)
    assert task["num_nodes"] == 4 and task["resources"]["accelerators"] == "H100:8"
    assert set(task["secrets"].values()) == {None} and {"WANDB_API_KEY", "HF_TOKEN"} <= set(task["secrets"])
    script = tmp_path / "run.sh"
    text = task["run"].replace("source launch/env.sh", f"# shellcheck source=/dev/null\nsource {ROOT}/launch/env.sh")
    script.write_text("#!/bin/bash\n" + text)
    check_script(script, shellcheck)
    task["secrets"] = None  # depends on the shell
    compare("skypilot.yaml", yaml.safe_dump(task, sort_keys=False, width=100_000), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["local", "qwen3_4b_poise_4x8", "--dry-run"], "`local` is one machine"),
        (["local", "cpu_poise", "nonsense", "--dry-run"], "not a Hydra override"),
        (["local", "cpu_poise", "poise.blok=1", "--dry-run"], "poise.blok"),
        (["ray", "cpu_poise"], "which cluster"),
        (["local", "cpu_poise", "trainer.project_name=" + KEY, "--dry-run"], "would hold the value of"),
        (["local", "no_such_run"], "does not exist"),
        (["local", "cpu_poise", "--nope"], "No such option"),
        (["ray", "cpu_poise", "--address", "http://127.0.0.1:9"], "nothing answers at"),
        (["ray", "cpu_poise", "--address", "head:8265"], "give the dashboard's, http://HOST:8265"),
        (["ray", "cpu_poise", "--address", "http://head:abc"], "give the dashboard's, http://HOST:8265"),
        (["preflight", "no_such.json"], "no_such.json"),
        (["address", "--run", "pyproject.toml"], "pyproject.toml:\n  run file: Invalid JSON"),
        (["wait", "--address", "head", "--nodes", "1", "--devices", "1"], "want HOST:PORT"),
        (["wait", "--address", "127.0.0.1:9", "--nodes", "1", "--devices", "1", "--timeout", "1"], "did not answer"),
    ],
)
def test_errors_are_one_message(tmp_path, arguments, message):
    env = os.environ | {"POISE_RUNS": str(tmp_path), "WANDB_API_KEY": KEY}
    done = subprocess.run(
        [sys.executable, "-m", "launch", *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode in (1, 2)
    assert message in done.stderr and "Traceback" not in done.stdout + done.stderr


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    env = os.environ | {"POISE_RUNS": str(tmp_path / "file")}
    command = [sys.executable, "-m", "launch", "local", "cpu_poise"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "cannot be made or written" in done.stderr
    assert "POISE_RUNS" in done.stderr and "Traceback" not in done.stderr


def test_slurm_without_sbatch_says_where_to_go(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunFileError, match="login node"):
        run("slurm", "cpu_poise_2x1")


def test_a_folder_inside_the_upload_is_refused(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("name: a\nconfig: poise_paper\n")
    with pytest.raises(RunFileError, match="a filesystem that all nodes share"):
        runtime_environment(load(path))
