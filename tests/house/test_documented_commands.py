"""Every command in README.md, CONTRIBUTING.md and docs/: composed, dry-run, parsed by its own program, or run.

A command that no handler knows fails the test, so that a new kind of command gets one.
"""

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGS = ROOT / "recipe/poise/config"
INLINE = re.compile(r"`((?:\w+=\S+ )*(?:python -m |python benchmarks/|bash launch/|taskset )[^`\n]+)`")
ELLIPSIS = ("...", "…")


def commands_of(text: str) -> list[str]:
    """Commands of all bash blocks, one a line with its continuations joined, and those between backticks."""
    found = []
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            if line.strip() and not line.strip().startswith("#"):
                found.append(line.strip())
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [*found, *INLINE.findall(outside)]


COMMANDS = [(document.name, line) for document in DOCUMENTS for line in commands_of(document.read_text())]


def words_of(line: str) -> list[str]:
    """Words without comments, variables set in front, and expanded braces."""
    expanded = subprocess.run(
        ["bash", "-c", f'for word in {line}\ndo printf "%s\\0" "$word"; done'],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | dict.fromkeys(("POISE_DATA", "POISE_RUNS"), "data"),
    )
    assert expanded.returncode == 0, f"bash does not read {line!r}: {expanded.stderr}"
    words = [word for word in expanded.stdout.split("\0")[:-1] if word not in ELLIPSIS]
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    return words


def composed(name: str, overrides: list[str]):
    """The config as the entry sees it, with all checks at start but those that read the model."""
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    from recipe.poise.config import check_config

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose(name, overrides=overrides)
    if config.algorithm.adv_estimator == "poise":
        check_config(config)
    if name not in ("poise_quickstart", "poise_uneven", "poise_wide"):
        validate_config(config, need_reference_policy(config), need_critic(config))
    return config


def entry(words: list[str], line: str, folder: Path) -> None:
    names = [words[index + 1] for index, word in enumerate(words) if word == "--config-name"]
    overrides = [word for word in words if "=" in word and not word.startswith("--")]
    overrides = [word.replace("=dump", f"={folder}") if word.startswith("poise.dump_features.folder") else word
                 for word in overrides]  # fmt: skip
    shortened = any(mark in line for mark in ELLIPSIS)  # what a run needs besides is not said
    composed(names[0] if names else "poise_quickstart" if shortened else "poise_trainer", overrides)


def quickstart(words: list[str], line: str, folder: Path) -> None:
    usage = (ROOT / "launch/quickstart.sh").read_text()
    for option in (word for word in words if word.startswith("--")):
        assert option.split("=")[0] in usage
    task = words[words.index("--task") + 1] if "--task" in words else "quickstart"
    composed(f"poise_{task}", [word for word in words if "=" in word and not word.startswith("-")])


def launched(words: list[str], line: str, folder: Path) -> None:
    verb, *rest = words
    environment = os.environ | {"POISE_RUNS": str(folder), "POISE_DATA": str(folder), "POISE_MODELS": ""}
    command = [sys.executable, "-m", "launch", verb, *rest]
    if verb == "preflight":  # reads the run file, and would then look at the machine
        from launch.runfile import load

        load(rest[0])
        return
    if verb in ("local", "slurm", "ray") and "--dry-run" not in command:  # the others write a file and start nothing
        command.append("--dry-run")
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def parsed(module: str):
    def handler(words: list[str], line: str, folder: Path) -> None:
        parser = importlib.import_module(module).parser()
        if not words:  # named in a sentence
            return
        try:
            parser.parse_args(words)
        except SystemExit as error:
            raise AssertionError(f"python -m {module} does not take {words}") from error

    return handler


def benchmark(words: list[str], line: str, folder: Path) -> None:
    script, *rest = words
    help_text = subprocess.run(
        [sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=120
    ).stdout
    for option in (word.split("=")[0] for word in rest if word.startswith("--")):
        assert option in help_text, f"{script} has no {option}"


def pytest_run(words: list[str], line: str, folder: Path) -> None:
    """What is named is there; collecting it all again would take longer than the rest of these tests."""
    paths = [ROOT / word.split("::")[0] for word in words if word.startswith("tests/")]
    assert all(path.exists() for path in paths), paths
    markers = (ROOT / "pyproject.toml").read_text()
    for option, value in zip(words, words[1:], strict=False):
        if option == "-m":
            assert f'"{value.removeprefix("not ")}: ' in markers, f"no marker {value}"


def settings(words: list[str], line: str, folder: Path) -> None:
    composed("poise_trainer", words)


def shell(words: list[str], line: str, folder: Path) -> None:
    """The functions of launch/env.sh exist and take these words."""
    for part in re.split(r"&&|;", line):
        name = shlex.split(part)[0]
        check = f"source launch/env.sh; type -t {name}"
        done = subprocess.run(["bash", "-c", check], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f"{name} is no command of launch/env.sh"


def installed(words: list[str], line: str, folder: Path) -> None:
    """An extra or a package that setup.py names."""
    known = (ROOT / "setup.py").read_text()
    for word in words[words.index("install") + 1 :]:
        for name in re.findall(r"[\w-]+", word.split("[")[-1]) if "[" in word else [word.removeprefix("-e").strip(".")]:
            assert not name or name.startswith("-") or f'"{name}' in known, f"{name} is not in setup.py"


def linters(words: list[str], line: str, folder: Path) -> None:
    script = (ROOT / "launch/test.sh").read_text()
    assert all(part.split()[0] in script for part in line.split("&&"))


HANDLERS = {
    r"(taskset -c \d+ )?python benchmarks/": benchmark,
    r"(\w+=\S+ )*python -m recipe\.poise\.main_poise\b": entry,
    r"(\w+=\S+ )*bash launch/quickstart\.sh": quickstart,
    r"bash launch/test\.sh": pytest_run,
    r"(\w+=\S+ )*python -m launch ": launched,
    r"python -m pytest": pytest_run,
    r"python -m recipe\.poise\.compare ": parsed("recipe.poise.compare.__main__"),
    r"python -m recipe\.poise\.data ": parsed("recipe.poise.data.__main__"),
    r"python -m recipe\.poise\.evaluate ": parsed("recipe.poise.evaluate.__main__"),
    r"python -m recipe\.poise\.studies\.gradient_variance": parsed("recipe.poise.studies.gradient_variance"),
    r"python -m recipe\.poise\.studies\.value_study": parsed("recipe.poise.studies.value_study"),
    r"python -m recipe\.poise\.studies\.prompt_study": parsed("recipe.poise.studies.prompt_study"),
    r"python -m recipe\.poise\.studies\.window_study": parsed("recipe.poise.studies.window_study"),
    r"python -m recipe\.poise\.studies\.spread": parsed("recipe.poise.studies.spread"),
    r"python -m recipe\.poise\.quickstart\.prepare": parsed("recipe.poise.quickstart.prepare"),
    r"python -m probe\.study": parsed("probe.study.__main__"),
    r"python -m reward\.check": parsed("reward.check"),
    r"source launch/env\.sh": shell,
    r"(python -m )?pip install": installed,
    r"ruff ": linters,
    r"[\"+]*[a-z_]+\.[\w.]+=": settings,
}


def test_commands_are_found():
    lines = [line for _, line in COMMANDS]
    assert len(lines) > 30
    assert "source launch/env.sh && poise_env gpu" in lines
    assert any(
        "main_poise actor_rollout_ref.model.path=Qwen/Qwen3-4B data.train_files" in " ".join(line.split())
        for line in lines
    )


@pytest.mark.parametrize(("document", "line"), COMMANDS, ids=[f"{name}: {line[:70]}" for name, line in COMMANDS])
def test_a_command_is_one_that_runs(document, line, tmp_path):
    handlers = [handler for pattern, handler in HANDLERS.items() if re.match(pattern, line)]
    assert handlers, f"{document} shows {line!r}, and no handler here knows such a command"
    if handlers[0] in (shell, linters):
        words = []
    else:
        words = words_of(re.sub(r"^taskset -c \d+ ", "", line))
    skipped = {
        benchmark: 1,
        entry: 3,
        quickstart: 2,
        launched: 3,
        settings: 0,
        shell: 0,
        installed: 0,
        linters: 0,
    }
    kept = skipped.get(handlers[0], 2 if line.startswith("bash") else 3)
    handlers[0](words[kept:], line, tmp_path)
