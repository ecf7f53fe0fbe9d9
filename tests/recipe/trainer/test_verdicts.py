"""At start: data that the router cannot judge is refused; other reward functions are not looked into."""

import pandas as pd
import pytest
from omegaconf import OmegaConf

from recipe.poise.trainer.verdicts import check_reward

ROUTER = "reward/router.py"


def config(tmp_path, source, path=ROUTER, routes=None):
    pd.DataFrame({"data_source": [source], "prompt": "x"}).to_parquet(tmp_path / "train.parquet")
    file = str(tmp_path / "train.parquet")
    kwargs = {"routes": routes} if routes else {}
    return OmegaConf.create(
        {
            "data": {"train_files": file, "val_files": [file, "hdfs://far/val.parquet"]},
            "reward": {"custom_reward_function": {"path": path, "name": "compute_score", "reward_kwargs": kwargs}},
        }
    )


@pytest.mark.parametrize("path", [ROUTER, "pkg://reward.router"])
def test_an_unknown_source_is_refused(tmp_path, path, monkeypatch):
    monkeypatch.chdir(pytest.importorskip("reward.router").__file__.removesuffix("/reward/router.py"))
    with pytest.raises(ValueError, match="no verifier for data_source 'mine'"):
        check_reward(config(tmp_path, "mine", path))
    check_reward(config(tmp_path, "mine", path, {"mine": "math"}))
    check_reward(config(tmp_path, "gsm8k", path))


def test_another_reward_function_is_its_owners_business(tmp_path):
    check_reward(config(tmp_path, "mine", "other.py"))
    check_reward(config(tmp_path, "mine", None))


@pytest.mark.parametrize(("name", "value", "said"), [("bonuss", 0.1, "did you mean bonus"), ("bonus", "abc", "bonus")])
def test_a_misspelt_or_wrong_option_is_refused_before_the_start(tmp_path, monkeypatch, name, value, said):
    monkeypatch.chdir(pytest.importorskip("reward.router").__file__.removesuffix("/reward/router.py"))
    run = config(tmp_path, "gsm8k")
    run.reward.custom_reward_function.reward_kwargs[name] = value
    with pytest.raises(ValueError, match=said):
        check_reward(run)
