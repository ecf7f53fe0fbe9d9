"""Benchmarks and the study, started as the documentation says, where a package is not installed: a sentence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from probe import FeatureLayout
from probe.study.dump import write_dump

ROOT = Path(__file__).parents[2]

# Python loads it at start: the module is as if it were not there
SITE = """
import os, sys, importlib.abc

class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == os.environ["HIDDEN"]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Nothing())
"""


def run(hidden: str, folder: Path, *command: str) -> subprocess.CompletedProcess:
    (folder / "site").mkdir()
    (folder / "site/sitecustomize.py").write_text(SITE)
    environment = os.environ | {"HIDDEN": hidden, "PYTHONPATH": f"{folder / 'site'}:{ROOT}"}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("script", "module"),
    [
        ("probe", "sklearn"), ("probe", "tqdm"), ("probe_ranks", "torch"), ("probe_ranks", "safetensors"),
        ("capture", "transformers"), ("rewards", "math_verify"), ("weighted", "sklearn"), ("caps", "transformers"),
        ("prompt_pass", "transformers"), ("modes", "omegaconf"),
    ],
)  # fmt: skip
def test_a_benchmark_says_what_to_install(script, module, tmp_path):
    done = run(module, tmp_path, f"benchmarks/{script}.py")
    said = f"error: {module} is not installed; in the project's folder: pip install -e '.[dev]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


def test_no_benchmark_is_forgotten():
    """Each script is among those above, and can tell its options."""
    scripts = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if "__main__" in path.read_text())
    assert scripts == ["caps", "capture", "modes", "probe", "probe_ranks", "prompt_pass", "rewards", "weighted"]
    for script in scripts:
        done = subprocess.run([sys.executable, f"benchmarks/{script}.py", "--help"], cwd=ROOT, capture_output=True)
        assert done.returncode == 0 and b"usage:" in done.stdout, done.stderr


@pytest.mark.parametrize("module", ["matplotlib", "tqdm"])
def test_the_study_says_what_to_install(module, tmp_path):
    layout, rows = FeatureLayout(("prompt@0/1",), (2,)), torch.arange(40)
    write_dump(tmp_path / "dump", 1, 0, layout, torch.randn(40, 2), rows % 2, rows // 2, rows // 2)
    done = run(module, tmp_path, "-m", "probe.study", str(tmp_path / "dump"), "--out", str(tmp_path / "out"))
    said = f"error: {module} is not installed; the study needs: pip install matplotlib tqdm\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


@pytest.mark.parametrize("hidden", ["verl", "vllm", "ray"])
def test_many_seeds_start_without_the_trainer(hidden, tmp_path):
    """A machine with a GPU and no verl is enough for them."""
    done = run(hidden, tmp_path, "benchmarks/many_seeds/run.py", "--help")
    assert done.returncode == 0 and "64 seeds" in done.stdout, done.stdout + done.stderr
