"""Every run that could not work is refused at start, with its remedy; the YAML mirrors the dataclass."""

import os
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from probe import ProbeSettings
from probe.study.compare import Choice
from probe.study.report import config_block
from recipe.poise.capture.signals import REWARD, SIGNALS
from recipe.poise.config import PoiseConfig, capture_settings, check_block, check_config, read_poise_config

CONFIG_DIR = str(Path(__file__).parents[2] / "recipe/poise/config")


def composed(*overrides, name="poise_trainer"):
    with initialize_config_dir(CONFIG_DIR, version_base=None):
        return compose(name, overrides=list(overrides))


def test_yaml_and_dataclass_agree():
    config = composed()
    assert set(config.poise) == {f.name for f in fields(PoiseConfig)}
    assert set(config.poise.probe) == {f.name for f in fields(ProbeSettings)}
    read = read_poise_config(config)
    assert read.probe.penalties == pytest.approx(ProbeSettings().penalties)
    assert replace(read, probe=replace(read.probe, penalties=ProbeSettings().penalties)) == PoiseConfig()


def test_the_block_that_the_study_prints_can_be_pasted():
    choice = Choice(11, 32, ("response",), (*SIGNALS, REWARD), "logistic")
    pasted = OmegaConf.merge(composed(), OmegaConf.create(config_block(choice, rank=48)))
    poise = check_config(pasted)
    assert (poise.block, poise.num_tokens, poise.states) == (11, 32, ("response",))
    assert poise.signals == (*SIGNALS, REWARD) and (poise.probe.kind, poise.probe.rank) == ("logistic", 48)


def test_domains_and_their_windows():
    probe = check_config(
        composed("+poise.probe.domains={math: 'math*', code: 'code*'}", "+poise.probe.domain_rows={code: 3072}")
    ).probe
    assert probe.domain_names == ("math", "code", "default") and probe.domain_index("codecontests") == 1
    assert [probe.rows_of(name) for name in probe.domain_names] == [4096, 3072, 4096]


@pytest.mark.parametrize("name", ["poise_trainer", "poise_quickstart"])
def test_run_configs_pass(name):
    assert check_config(composed(name=name)).num_tokens == 10


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+poise.blok=3"], "unknown setting poise.blok"),
        (["+poise.probe.windw=3"], "unknown setting poise.probe.windw"),
        (["poise.signals=[entropy_of_everything]"], "entropy_of_everything"),
        (["poise.states=[middle]"], "poise.states"),
        (["poise.num_tokens=0"], "at least 1 token"),
        (["actor_rollout_ref.rollout.n=1"], "biased"),
        (["algorithm.rollout_correction.bypass_mode=True"], "nothing to capture"),
        (["actor_rollout_ref.model.external_lib=null"], "recipe.poise.capture.engine"),
        (["critic.enable=False"], "critic seat"),
        (["trainer.v1.trainer_mode=separate_async"], "sync and colocate_async"),
        (["actor_rollout_ref.actor.strategy=megatron"], "fsdp2"),
        (["trainer.device=cpu", "actor_rollout_ref.actor.strategy=fsdp"], "on a CPU only fsdp2"),
        (["trainer.use_v1=False"], "V1 trainer"),
    ],
)
def test_refusals(overrides, message):
    with pytest.raises(ValueError, match=message):
        check_config(composed(*overrides))


def test_one_rollout_is_allowed_for_a_prompt_only_probe():
    poise = check_config(composed("actor_rollout_ref.rollout.n=1", "poise.states=[prompt]", "poise.signals=[]"))
    assert poise.prompt_only


@pytest.mark.parametrize(("block", "message"), [("4", "block"), ("-1", "block"), ("1.5", "block")])
def test_a_block_that_the_model_lacks_is_refused(tmp_path, block, message):
    from transformers import Qwen3Config

    Qwen3Config(num_hidden_layers=4).save_pretrained(tmp_path)
    config = composed(f"actor_rollout_ref.model.path={tmp_path}", f"poise.block={block}")
    with pytest.raises(ValueError, match=message):
        check_block(check_config(config), config)
    good = composed(f"actor_rollout_ref.model.path={tmp_path}", "poise.block=3")
    check_block(check_config(good), good)


def test_a_tokenizer_without_the_end_of_thinking_gets_one_warning(caplog):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def tokenizer(vocabulary):
        model = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
        model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(tokenizer_object=model, eos_token=".", unk_token="?")

    poise = PoiseConfig(end_think="a b", signals=("reward", "length"))
    settings = capture_settings(poise, tokenizer({"?": 0, ".": 1, "a": 2, "b": 3}), 8)
    assert settings.end_think_id is None and settings.signals == ("length",) and settings.eos_token_ids == (1,)
    assert len(caplog.records) == 1 and "no single token 'a b'" in caplog.text
    one = capture_settings(PoiseConfig(end_think="</think>"), tokenizer({"?": 0, ".": 1, "</think>": 2}), 8)
    assert one.end_think_id == 2 and len(caplog.records) == 1


def test_the_entry_refuses_before_ray_starts():
    """The real command, on a config that cannot work, ends within seconds with the message."""
    import subprocess
    import sys

    command = [sys.executable, "-m", "recipe.poise.main_poise", "--config-name", "poise_quickstart", "+poise.blok=1"]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=180, env=os.environ | {"VERL_PLATFORM": "cpu"}
    )
    assert result.returncode != 0
    assert "unknown setting poise.blok" in result.stderr
