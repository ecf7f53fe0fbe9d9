"""The library stands alone: with nothing but torch, numpy and safetensors it can be imported and used."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

# every other distribution that is installed is hidden from the import system
PROGRAM = """
import sys
import importlib.abc
from importlib.metadata import packages_distributions

import torch, numpy, safetensors.torch  # and what they need themselves

class Nothing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"{name} is hidden")

hidden = set(packages_distributions()) - {"torch", "numpy", "safetensors", "probe"}
hidden |= {"recipe", "reward", "launch"}
assert {"ray", "verl", "sklearn", "matplotlib", "omegaconf", "transformers"} <= hidden
sys.meta_path.insert(0, Nothing())

import probe.estimators, probe.metrics, probe.planted, probe.study.compare, probe.study.dump
"""


def test_the_example_of_the_documentation_needs_nothing_but_torch_numpy_and_safetensors(tmp_path):
    page = (ROOT / "docs/probe.md").read_text()
    example = page.partition("```python\n")[2].partition("```")[0]
    assert "bank.update" in example
    command = [sys.executable, "-c", PROGRAM + example]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 8 and (tmp_path / "probe_state/probe.json").exists()


def test_who_only_reads_settings_does_not_wait_for_torch():
    """The launcher's modules do: on a login node a second of every command."""
    program = (
        "import sys, launch.cli, probe; print('torch' in sys.modules); probe.ProbeBank; print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert result.stdout.split() == ["False", "True"], result.stderr
