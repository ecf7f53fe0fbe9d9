"""Hostile values through every file that is written, which bash then really runs: each arrives as it was."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hydra.core.override_parser.overrides_parser import OverridesParser

from launch import quoting
from launch.cli import cli
from launch.compose import override
from launch.runfile import ROOT, RunFile, RunFileError, load

HOSTILE = [
    "it's", 'a "b"', "a}b", "{{x}}", "${HOME:-x}", "two\nlines\n", "\ttab", "$(touch PWNED)", "`touch PWNED`",
    "; touch PWNED", "| touch PWNED #", "' ; touch PWNED; '", "* ? [a-z]", "ünïcödé 漢字", " spaces  ", "-leading",
    "--dash=x", "back\\slash", "end\\", "a\\'b", "\\n", "~", "!history", "#comment", "a,b:c=d", "%j %%", "packjob", "",
    "true", "null", "- a: b", "'\"'\"'", "$$", "$'x'",
]  # fmt: skip
PAYLOAD = """
import json, os, sys
with open(os.path.join(os.environ["DUMP"], f"{os.getpid()}.json"), "w") as file:
    json.dump({"args": sys.argv, "env": dict(os.environ)}, file)
print("127.0.0.1")
"""


@pytest.mark.parametrize("value", HOSTILE)
def test_a_word_of_bash(value):
    done = subprocess.run(["bash", "-c", f"printf %s {quoting.shell(value)}"], capture_output=True, check=True)
    assert done.stdout.decode() == value


def sbatch_words(line: str) -> list[str]:
    """What sbatch makes of the line after #SBATCH: a backslash escapes everywhere, # outside of quotes is a comment,
    and the word packjob is blanked."""
    line = re.sub("(?i)packjob", " " * 7, line)
    words, word, quote, escaped, begun = [], "", "", False, False
    for character in line:
        if escaped:
            word, escaped = word + character, False
        elif character == "\\":
            escaped = begun = True
        elif quote:
            quote, word = ("", word) if character == quote else (quote, word + character)
        elif character in "'\"":
            quote, begun = character, True
        elif character == "#":
            break
        elif character.isspace():
            if begun or word:
                words.append(word)
            word, begun = "", False
        else:
            word += character
    assert not quote and not escaped, line
    return [*words, word] if begun or word else words


@pytest.mark.parametrize("value", [value for value in HOSTILE if "\n" not in value])
def test_an_option_of_sbatch(value):
    assert sbatch_words(quoting.sbatch(f"--comment={value}")) == [f"--comment={value}"]


@pytest.mark.parametrize("value", [*HOSTILE, [*HOSTILE[:3], None, 1.5], {"a-b": HOSTILE[4]}, float("inf"), -1e-30])
def test_a_value_of_hydra(value):
    parsed = OverridesParser.create().parse_override(override("+a.b", value)).value()

    def plain(item):
        if isinstance(item, dict):
            return {str(key): plain(part) for key, part in item.items()}
        if isinstance(item, list):
            return [plain(part) for part in item]
        return getattr(item, "text", item)

    assert plain(parsed) == value


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A hostile folder, and a payload in place of the trainer, srun and python that writes what it got to DUMP."""
    for name in ("dump", "bin", "modules"):
        (tmp_path / name).mkdir()
    (tmp_path / "modules/hostile_payload.py").write_text(PAYLOAD)
    for name in ("srun", "python"):
        (tmp_path / "bin" / name).write_text(f"#!{sys.executable}\n{PAYLOAD}")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "bin/scontrol").write_text("#!/bin/sh\necho node1\n")
    (tmp_path / "bin/scontrol").chmod(0o755)
    monkeypatch.setenv("DUMP", str(tmp_path / "dump"))
    return tmp_path


FOLDER = "runs $(touch PWNED) `touch PWNED` it's ü;*&"


def write(place: Path, **settings) -> Path:
    values = {
        "base": str(ROOT / "launch/runs/cpu_poise.yaml"),
        "name": "hostile",
        "entry": "hostile_payload",
        "folder": str(place / FOLDER / "run"),
        "prepare": [],
        "env": {f"HOSTILE_{index}": value for index, value in enumerate(HOSTILE) if "${" not in value},
        "overrides": {f"+hostile.v{index}": value for index, value in enumerate(HOSTILE) if "${" not in value},
    }
    path = place / "hostile.yaml"
    path.write_text(yaml.safe_dump(values | settings, allow_unicode=True))
    return path


def launch(*arguments: object) -> str:
    done = CliRunner().invoke(cli, [str(item) for item in arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def run_script(place: Path, *command: object, **env: str) -> list[dict]:
    """Run it; what the payloads got, oldest first. Nothing that a value says has been run."""
    path = os.pathsep.join([str(place / "bin"), os.environ["PATH"]])
    env = os.environ | {"PATH": path, "PYTHONPATH": str(place / "modules"), **env}
    done = subprocess.run(list(map(str, command)), cwd=place, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not [*place.rglob("PWNED"), *ROOT.glob("PWNED"), *ROOT.glob("launch/PWNED")]
    dumps = sorted((place / "dump").iterdir(), key=lambda item: item.stat().st_mtime_ns)
    return [json.loads(item.read_text()) for item in dumps]


def assert_environment(found: dict, run: RunFile) -> None:
    assert {name: found["env"].get(name) for name in run.env} == run.env


def test_train_sh(place):
    path = write(place)
    launch("local", path, "--dry-run", "+hostile.last='a b'")
    (found,) = run_script(place, "bash", place / FOLDER / "run/launch/train.sh")
    run = load(path)
    assert_environment(found, run)
    assert found["args"][1:3] == ["--config-name", "poise_quickstart"]
    assert [item for item in found["args"] if item.startswith("+hostile")] == [
        *(override(key, value) for key, value in run.overrides.items() if key.startswith("+hostile")),
        "+hostile.last='a b'",
    ]


@pytest.mark.parametrize("kind", ["venv", "apptainer"])
def test_sbatch(place, kind, shellcheck):
    slurm = {"extra": ["--comment=it's #1", "--wckey=a b"], "cpus_per_node": 1}
    if kind == "apptainer":
        slurm["environment"] = {"kind": kind, "image": "/images/it's;x.sif", "mounts": ["/a b", "/c$(touch PWNED):/d"],
                                "options": [f"--env=X={value}" for value in HOSTILE if "${" not in value]}  # fmt: skip
    path = write(place, slurm=slurm, accelerator="gpu")
    out = launch("slurm", path, "--dry-run")
    script = place / FOLDER / "run/launch/hostile.sbatch"
    assert out.splitlines()[-1] == f"[launch] to start: {shlex.join(['sbatch', str(script)])}"
    lines = [line.removeprefix("#SBATCH ") for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    options = [word for line in lines for word in sbatch_words(line)]
    assert len(options) == len(lines) and options[-2:] == slurm["extra"]
    assert f"--output={place / FOLDER}/run/logs/slurm-%j.out" in options
    found = subprocess.run([shellcheck, "--severity=error", script], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout

    found = run_script(place, "bash", script, SLURM_JOB_NODELIST="node1", SLURM_JOB_ID="1")
    attempt = found[-1]
    run = load(path)
    assert_environment(attempt, run)
    spec = attempt["args"][attempt["args"].index("--run") + 1]
    assert RunFile.from_json(Path(spec).read_text()) == run
    assert Path(attempt["args"][attempt["args"].index("--logs") + 1]).parent == run.root / "logs"
    if kind == "apptainer":
        words = attempt["args"]
        assert [word for word in words if word.startswith("--env=X=")] == slurm["environment"]["options"]
        assert "/c$(touch PWNED):/d" in words and words[words.index("python") - 1] == "/images/it's;x.sif"

    # what the shell has set stays
    for item in (place / "dump").iterdir():
        item.unlink()
    found = run_script(place, "bash", script, SLURM_JOB_NODELIST="node1", SLURM_JOB_ID="1", HOSTILE_0="mine")
    assert found[-1]["env"]["HOSTILE_0"] == "mine"


def as_ray_expands(value: str) -> str:
    """What Ray does to the variables of a job's runtime environment."""
    return re.sub(r"\$\{[A-Z0-9_]+\}", "", os.path.expandvars(value))


def as_kubernetes_expands(value: str) -> str:
    """$(NAME) is a variable, $$ a dollar."""
    return re.sub(r"\$(\$|\([^)]*\))", lambda match: "$" if match[1] == "$" else "EXPANDED", value)


def test_kuberay(place, monkeypatch):
    monkeypatch.setenv("HOME2", "/home")
    path = write(place, prepare=["echo $HOME2 \\${HOME2} '$(touch PWNED)'"])
    launch("kuberay", path)
    manifest = yaml.safe_load((place / FOLDER / "run/launch/kuberay.yaml").read_text())
    run = load(path)
    container = manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    env = {item["name"]: as_kubernetes_expands(item["value"]) for item in container["env"]}
    assert {name: env[name] for name in run.env} == run.env
    job = yaml.safe_load(manifest["spec"]["runtimeEnvYAML"])["env_vars"]
    assert {name: as_ray_expands(job[name]) for name in run.env} == run.env
    assert RunFile.from_json(as_ray_expands(job["POISE_RUN"])) == run


def test_ray(place):
    path = write(place)
    out = launch("ray", path, "--dry-run")
    command = shlex.split(out.splitlines()[-1].partition("to start: ")[2])
    runtime_env = str(place / FOLDER / "run/launch/runtime_env.yaml")
    assert command[-6:] == [runtime_env, "--", "python", "-m", "launch", "job"]
    runtime = yaml.safe_load(Path(runtime_env).read_text())["env_vars"]
    assert {name: as_ray_expands(runtime[name]) for name in load(path).env} == load(path).env


def test_what_ray_would_expand_is_refused(place):
    with pytest.raises(RunFileError, match=r"env.MINE: .*Ray puts variables in place"):
        launch("kuberay", write(place, env={"MINE": "a$HOME"}))


def test_skypilot(place):
    path = write(place, nodes=2)
    launch("skypilot", path)
    task = yaml.safe_load((place / FOLDER / "run/launch/skypilot.yaml").read_text())
    run = load(path)
    assert {name: task["envs"][name] for name in run.env} == run.env
    (place / "launch").mkdir()
    (place / "launch/env.sh").write_text("poise_env() { :; }\n")
    (place / "task.sh").write_text(task["run"])
    env = {
        **task["envs"],
        "SKYPILOT_TASK_ID": "id 1",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NODE_RANK": "0",
    }
    found = run_script(place, "bash", place / "task.sh", **env)
    [wait] = [one["args"] for one in found if "--attempt" in one["args"]]  # Ray's node runs beside it: in any order
    logs = Path(wait[wait.index("--attempt") + 1])
    assert logs.parent == run.root / "sky" and RunFile.from_json((logs / "run-0.json").read_text()) == run
    assert len(found) >= 3
    for one in found:
        assert_environment(one, run)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"env": {"A;touch PWNED": "x"}}, "is not the name of a variable"),
        ({"env": {"$(touch PWNED)": "x"}}, "is not the name of a variable"),
        ({"env": {"A\nB": "x"}}, "is not the name of a variable"),
        ({"env": {"UID": "0"}}, "a variable of bash itself"),
        ({"env": {"A": "a\0b"}}, "NUL"),
        ({"entry": "a; touch PWNED"}, "a module's name"),
        ({"config": "../x"}, "the name of a file in recipe/poise/config"),
        ({"secrets": ["A;B"]}, "use a variable's name"),
        ({"interface": "ib0; x"}, "name of a network interface"),
        ({"folder": "/a\nb"}, "line break"),
        ({"folder": "-x"}, "cannot begin with '-'"),
        ({"slurm": {"partition": "a b"}}, "Slurm's names"),
        ({"slurm": {"account": "a\n#SBATCH --x"}}, "Slurm's names"),
        ({"slurm": {"mem": "1;2"}}, "for instance 64G"),
        ({"slurm": {"gpu_option": "{"}}, "for instance --gres=gpu:{n}"),
        ({"slurm": {"gpu_option": "--gres={n.__class__}"}}, "for instance --gres=gpu:{n}"),
        ({"slurm": {"extra": ["x"]}}, "write it as --option=value"),
        ({"slurm": {"extra": ["--a=b\n--c"]}}, "line break"),
        ({"slurm": {"environment": {"kind": "pyxis", "image": "--x"}}}, "does not begin with '-'"),
        ({"slurm": {"environment": {"kind": "pyxis", "image": "i", "mounts": ["/a,/b"]}}}, "separate mounts"),
        ({"slurm": {"environment": {"path": "/a=b"}}}, "takes it for a variable"),
        ({"kubernetes": {"namespace": "A b"}}, "as Kubernetes has it"),
        ({"kubernetes": {"memory": "1 GB"}}, "for instance 256Gi"),
        ({"sky": {"accelerator": "H100:8"}}, "SkyPilot's name"),
        ({"sky": {"bucket": "-b"}}, "does not begin with '-'"),
    ],
)
def test_names_that_are_none(place, settings, message):
    with pytest.raises(RunFileError, match=re.escape(message)):
        load(write(place, **settings))


def test_a_variable_of_the_sbatch_file_is_not_taken_over(place):
    with pytest.raises(RunFileError, match=r"env.NODES: the sbatch file has a variable of that name"):
        launch("slurm", write(place, env={"NODES": "7"}), "--dry-run")
