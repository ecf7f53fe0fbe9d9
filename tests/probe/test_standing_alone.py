"""The library stands alone: with nothing but torch, numpy and safetensors it can be imported and used."""

import subprocess
import sys

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

import tempfile
import probe.estimators, probe.metrics, probe.planted, probe.study.compare, probe.study.dump
from probe import ProbeBank, ProbeSettings

world = probe.planted.PlantedWorld(32)
bank = ProbeBank(ProbeSettings(min_rows=8, exact_features=8, rank=4), world.layout())
rows = world.draw(64)
bank.update(rows.x_NF, rows.reward_N, rows.group_N)
with tempfile.TemporaryDirectory() as folder:
    bank.save(folder + "/bank")
    bank.load(folder + "/bank")
assert bank.predict(rows.x_NF).value_R.isfinite().all()
print("used alone")
"""


def test_with_nothing_but_torch_numpy_and_safetensors():
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    assert result.stdout == "used alone\n", result.stderr
