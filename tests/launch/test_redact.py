"""A secret in every form that the writers, programs and shells give it: refused in files, masked in logs, also in
pieces, and in messages."""

import json
import os
import random
import shlex
import subprocess
import sys
from urllib.parse import quote

import pytest
import yaml
from click.testing import CliRunner
from omegaconf import OmegaConf

from launch import quoting
from launch.cli import cli
from launch.environment import check_public, check_secrets, write_public
from launch.processes import Child
from launch.redact import MASK, Secrets
from launch.runfile import ROOT, RunFileError, load

PEM = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\nAQEFAASCBKcwggSjAgEAAoIB\n-----END KEY-----\n"
VALUES = [
    "hf_abcdefghijklmnop", "pa'ss\"word", "tab\there\tand", "back\\slash\\x", "line one\nline two", PEM,
    "pässwörd-漢字", "$(x) `y` ${z}", "a b  c d e f", "100%{}[]#&*!|>", "'\"'\"'\"'\"", "x=y;z=w\\", '{"k": "v w"}',
    "ends with '", "-lead: x",
]  # fmt: skip


def written(value: str) -> dict[str, str]:
    """As a program may write it."""
    bash = subprocess.run(["bash", "-c", 'printf %q "$X"; set -x; : "$X"'], env={"X": value, "PATH": os.environ["PATH"],
                          "LC_ALL": "C.UTF-8"}, capture_output=True, check=True)  # fmt: skip
    ascii_bash = subprocess.run(["bash", "-c", 'printf %q "$X"'], env={"X": value, "LC_ALL": "C"}, capture_output=True)
    forms = {
        "raw": value,
        "JSON": json.dumps({"key": value}),
        "JSON, as it is": json.dumps({"key": value}, ensure_ascii=False, indent=2),
        "YAML": yaml.safe_dump({"key": [value]}),
        "YAML, as it is": yaml.safe_dump({"key": {"nested": value}}, allow_unicode=True),
        "YAML, narrow": yaml.safe_dump({"key": "before " * 10 + value}, width=40),
        "OmegaConf": OmegaConf.to_yaml({"a": {"b": value}}),
        "YAML's block": yaml.safe_dump({"key": value}, default_style="|"),
        "YAML's quotes": yaml.safe_dump({"key": value}, default_style="'", width=10**6),
        "JSON in YAML": yaml.safe_dump({"key": json.dumps({"inner": value})}, width=10**6),
        "JSON in shell": shlex.quote(json.dumps({"inner": value})),
        "Python": repr({"key": value}),
        "Python's ASCII": ascii([value]),
        "Python's bytes": repr(value.encode()),
        "shell": shlex.quote(value),
        "bash": bash.stdout.decode(),
        "bash's trace": bash.stderr.decode(),
        "bash in C": ascii_bash.stdout.decode(errors="surrogateescape"),
        "sbatch": quoting.sbatch(f"--comment={value}"),
        "Hydra": quoting.hydra(value),
        "Hydra in shell": shlex.quote(quoting.hydra(value)),
        "URL": f"https://x/?t={quote(value, safe='')}",
    }
    return forms


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_every_form_is_found(value):
    secrets = Secrets(environ={"MY_TOKEN": value})
    for name, text in written(value).items():
        assert secrets.found_in(f"some {text} text") == "MY_TOKEN", (name, text)
    assert secrets.found_in("some other text") is None


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_nothing_of_it_is_left_in_a_log(value):
    """Whole and in pieces of any size; several lines one by one too."""
    secrets = Secrets(environ={"MY_TOKEN": value})
    forms = written(value)
    for name in ("raw", "JSON", "Python", "shell", "bash", "Hydra", "URL", "JSON in shell", "bash's trace"):
        text = f"before {forms[name]} after\n"
        masked = secrets.mask(text)
        assert MASK in masked and secrets.found_in(masked) is None, (name, masked)
        assert masked.startswith(("before ", "before\n")) and masked.endswith(" after\n"), (name, masked)
        for seed in range(5):
            assert in_pieces(secrets, text.encode(errors="surrogateescape"), seed).decode() == masked, name
    lines = [line.strip() for line in value.splitlines() if len(line.strip()) >= 8]
    for line in lines:
        assert secrets.mask(f"(pid=7) {line}\n") == f"(pid=7) {MASK}\n"


def in_pieces(secrets: Secrets, data: bytes, seed: int) -> bytes:
    rng, stream, shown = random.Random(seed), secrets.stream(), b""
    while data:
        size = rng.choice([1, 1, 2, 5, 30])
        shown += stream.feed(data[:size])
        data = data[size:]
    return shown + stream.end()


def test_a_piece_never_ends_inside_one_secret_as_another_may_begin_there():
    secrets = Secrets(environ={"A_TOKEN": "abcdefgh", "B_TOKEN": "ghijklmnop"})
    stream = secrets.stream()
    assert stream.feed(b"x abcdefgh") + stream.feed(b" y") + stream.end() == b"x *** y"


def test_what_is_no_secret_is_shown_at_once():
    stream = Secrets(environ={"A_TOKEN": "hf_abcdefghijk"}).stream()
    assert stream.feed(b"step 1\n") == b"step 1\n"
    assert stream.feed(b"no newline") == b"no newline"


def test_short_ones_are_words_and_shorter_ones_are_refused(monkeypatch):
    secrets = Secrets(environ={"A_TOKEN": "s3cr", "B_KEY": "word"})
    assert secrets.mask("s3cr, s3cret, xs3cr, (word)=s3cr") == "***, s3cret, xs3cr, (***)=***"
    assert secrets.found_in("passwords") is None and secrets.found_in("pass word") == "B_KEY"
    for seed in range(20):
        assert in_pieces(secrets, b"a s3cr and s3cret word", seed) == b"a *** and s3cret ***"
    run = load("cpu_poise")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")  # a switch
    check_secrets(run)
    monkeypatch.setenv("OTHER_TOKEN", "abc")
    with pytest.raises(RunFileError, match=r"\$OTHER_TOKEN has fewer than 4 characters.*'!OTHER_TOKEN'"):
        check_secrets(run)
    check_secrets(run.model_copy(update={"secrets": [*run.secrets, "!OTHER_TOKEN"]}))


def test_names_match_in_any_case():
    assert set(Secrets(["my_*", "!MY_NAME"], {"My_Thing": "abcdefghi", "MY_NAME": "abcdefghj"}).values) == {"My_Thing"}


@pytest.mark.parametrize("value", [value for value in VALUES[:9] if "${" not in value], ids=range(8))
def test_no_file_of_a_run_is_written_with_it(tmp_path, monkeypatch, value):
    monkeypatch.setenv("MY_TOKEN", value)
    monkeypatch.setenv("POISE_RUNS", str(tmp_path / "runs"))
    path = tmp_path / "run.yaml"
    settings = {"base": str(ROOT / "launch/runs/cpu_poise_2x1.yaml"), "overrides": {"+logged.as": value}}
    path.write_text(yaml.safe_dump(settings))
    for command in (["local", "cpu_poise", f"+x={quoting.hydra(value)}", "--dry-run"], ["slurm", path, "--dry-run"],
                    ["ray", path, "--dry-run"], ["kuberay", path], ["skypilot", path]):  # fmt: skip
        done = CliRunner().invoke(cli, list(map(str, command)))
        assert isinstance(done.exception, RunFileError) and "would hold the value of $MY_TOKEN" in str(done.exception)
    assert not [item for item in (tmp_path / "runs").rglob("*") if item.is_file()]
    for form in written(value).values():
        with pytest.raises(RunFileError, match="MY_TOKEN"):
            write_public(tmp_path / "runs/x", form, load("cpu_poise"))
    check_public("x", "nothing", load("cpu_poise"))


def test_the_output_of_a_child_is_masked_as_it_comes(tmp_path, capfdbinary):
    secrets = Secrets(environ={"MY_TOKEN": PEM, "B_TOKEN": "hf_abcdefghijk"})
    script = (
        "import sys, time\nfor item in sys.argv[1:]:\n  for start in range(0, len(item), 7):\n"
        "    sys.stdout.write(item[start:start + 7]); sys.stdout.flush(); time.sleep(0.01)\n  print()"
    )
    child = Child([sys.executable, "-c", script, PEM, "x hf_abcdefghijk y", repr(PEM)], tmp_path / "log", secrets)
    assert child.wait(60) == 0
    child.clear()
    log = (tmp_path / "log").read_bytes()
    assert log == capfdbinary.readouterr().out
    assert secrets.found_in(log.decode()) is None and b"x *** y\n" in log and b"MII" not in log


def launch(*arguments: str, **env: str) -> str:
    """Standard error of a command that fails."""
    command = [sys.executable, "-m", "launch", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=120)
    assert done.returncode, done.stdout
    return done.stdout + done.stderr


@pytest.mark.parametrize("value", ["hf_abcdefghijk", "tok'en\"\\x\there"])
def test_messages_are_masked(tmp_path, value):
    path = tmp_path / "run.yaml"
    for settings, said in (
        ({"name": f"{value} x", "config": "x"}, "name: use letters"),
        ({"name": "a", "config": "poise_paper", "nodes": value}, "nodes: "),
        ({"name": "a", "config": "poise_paper", "slurm": {"environment": {"image": value}}}, "slurm.environment"),
        ({"name": "a", "config": "poise_paper", "overrides": {"trainer.save_freq": value}}, "trainer.save_freq: want"),
        ({"name": "a", "config": "poise_paper", "overrides": {value.split()[0]: 1}}, "error"),
    ):
        path.write_text(yaml.safe_dump(settings))
        out = launch("local", str(path), "--dry-run", MY_TOKEN=value.split()[0] if said == "error" else value)
        assert said in out and "***" in out and Secrets(environ={"T_TOKEN": value}).found_in(out) is None, out
    (tmp_path / "run.json").write_text(json.dumps({"name": f"{value} x"}))
    out = launch("address", "--run", str(tmp_path / "run.json"), MY_TOKEN=value)
    assert "***" in out and value not in out and "Traceback" not in out
    out = launch("wait", "--address", "h:1", "--devices", "1", "--nodes", value, MY_TOKEN=value)
    assert "***" in out and "Invalid value" in out and Secrets(environ={"T_TOKEN": value}).found_in(out) is None


def test_a_runs_own_secrets_are_masked_too(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"name": "a", "config": "poise_paper", "secrets": ["ODD_*"]}))
    out = launch("local", str(path), "--dry-run", "trainer.save_freq=odd-secret-value", ODD_NAME="odd-secret-value")
    assert "trainer.save_freq: want a number of steps (found '***')" in out
