"""Figures of how unequal a task's prompts are."""

import json
import math

import pytest
import torch

from recipe.poise.quickstart.prepare import Settings, prepare
from recipe.poise.quickstart.warm_start import WarmStart
from recipe.poise.studies.spread import main, spread, table


def drawn(rate_P: torch.Tensor, k: int = 32) -> torch.Tensor:
    return torch.bernoulli(rate_P.unsqueeze(1).expand(-1, k), generator=torch.Generator().manual_seed(0)).double()


def test_the_noise_of_k_draws_is_taken_off():
    equal = drawn(torch.full((4000,), 0.5), k=8)
    ones = torch.ones_like(equal)
    found = spread(equal, ones, ones, 64)
    assert found["rate_sd"] == pytest.approx(math.sqrt(0.25 / 8), rel=0.05)
    assert found["rate_sd_true"] < 0.03 and found["best_sd_true"] < 0.03
    unequal = drawn(torch.linspace(0, 1, 4000), k=8)
    found = spread(unequal, ones, ones, 64)
    assert found["rate_sd_true"] == pytest.approx(1 / math.sqrt(12), rel=0.03)
    assert found["best_sd_true"] == pytest.approx(1 / math.sqrt(12), rel=0.03)  # equal energies: b* is the rate


def test_energy_moves_the_best_baseline():
    reward_PK = drawn(torch.full((2000,), 0.5))
    energy_PK = torch.where(reward_PK > 0.5, 1.0, 3.0).double()
    length_PK = torch.where(reward_PK > 0.5, 10.0, 64.0).double()
    found = spread(reward_PK, energy_PK, length_PK, limit=64)
    assert found["energy_ratio"] == pytest.approx(3.0)
    assert found["best"] == pytest.approx(0.25, abs=0.01)
    assert found["at_limit"] == pytest.approx(1 - found["rate"]) and found["length_right"] == 10


def test_the_command_prints_a_row_per_family(tmp_path, capsys):
    prepare(tmp_path / "assets", Settings(WarmStart(steps=2, batch=4), 20, 8, 0))
    model, data = str(tmp_path / "assets" / "model"), str(tmp_path / "assets" / "val.parquet")
    options = ["--prompts", "6", "--k", "4", "--max-tokens", "8", "--out", str(tmp_path / "spread.json")]
    main(["--model", model, "--data", data, *options])
    found = json.loads((tmp_path / "spread.json").read_text())
    assert set(found) == {"all", "chain_sum", "products"}
    assert found["all"]["prompts"] == 6 == found["chain_sum"]["prompts"] + found["products"]["prompts"]
    assert table(found) in capsys.readouterr().out
