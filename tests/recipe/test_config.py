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
from recipe.poise.capture.dump import DumpSettings
from recipe.poise.capture.signals import REWARD, SIGNALS
from recipe.poise.choose.settings import SelectSettings
from recipe.poise.config import (
    PoiseConfig,
    capture_settings,
    check_block,
    check_config,
    check_types,
    read_poise_config,
)

CONFIG_DIR = str(Path(__file__).parents[2] / "recipe/poise/config")


def composed(*overrides, name="poise_trainer"):
    with initialize_config_dir(CONFIG_DIR, version_base=None):
        return compose(name, overrides=list(overrides))


def test_yaml_and_dataclass_agree():
    config = composed()
    assert set(config.poise) == {f.name for f in fields(PoiseConfig)}
    assert set(config.poise.probe) == {f.name for f in fields(ProbeSettings)}
    assert set(config.poise.select) == {f.name for f in fields(SelectSettings)}
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


@pytest.mark.parametrize("name", ["poise_trainer", "poise_quickstart", "poise_uneven", "poise_wide"])
def test_run_configs_pass(name):
    assert check_config(composed(name=name)).num_tokens == 10


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+poise.blok=3"], "unknown setting poise.blok"),
        (["+poise.probe.windw=3"], "unknown setting poise.probe.windw"),
        (["poise.signals=[entropy_of_everything]"], "entropy_of_everything"),
        (["poise.states=[middle]"], "poise.states"),
        (["poise.num_tokens=0"], "poise.num_tokens=0: want a whole number of at least 1"),
        (["actor_rollout_ref.rollout.n=1"], "biased"),
        (["algorithm.rollout_correction.bypass_mode=True"], "bypass_mode=True skips the log-prob pass"),
        (["actor_rollout_ref.model.external_lib=null"], "recipe.poise.capture.engine"),
        (["critic.enable=False"], "critic seat"),
        (["trainer.v1.trainer_mode=fully_async"], "POISE runs in sync, colocate_async, separate_async"),
        (["actor_rollout_ref.actor.strategy=megatron"], "fsdp2"),
        (["trainer.device=cpu", "actor_rollout_ref.actor.strategy=fsdp"], "on a CPU only fsdp2"),
        (["trainer.use_v1=False"], "V1 trainer"),
        (["poise.select.candidates=0"], "poise.select.candidates=0: want a whole number of at least 1"),
        (["poise.select.rule=best"], "poise.select.rule='best': want one of pass_rate, energy, random"),
        (
            ["poise.select.rule=energy", "poise.weights=uniform"],
            "poise.select.rule='energy': want pass_rate with poise.weights=uniform",
        ),
        (["poise.select.candidates=2", "poise.states=[response]"], "poise.states=.'response'.: want prompt among them"),
        (["poise.rollouts=adaptive", "trainer.v1.trainer_mode=colocate_async"], "only in mode sync"),
        (["actor_rollout_ref.actor.loss_agg_mode=median"], "loss_agg_mode=median: .* known for token-mean"),
        (
            ["actor_rollout_ref.actor.calculate_sum_pi_squared=True", "actor_rollout_ref.model.use_fused_kernels=True"],
            "fused kernels do not keep",
        ),
    ],
)
def test_refusals(overrides, message):
    with pytest.raises(ValueError, match=message):
        check_config(composed(*overrides))


# by setting: values, and what the error wants
WRONG_VALUES = {
    "poise.block": ("[true,abc,null,-1,1.5,nan]", "a whole number of at least 0 or a finite number of at least 0 and"),
    "poise.num_tokens": ("[1.5,nan,true,abc,null,1e1,1000000000]", "a whole number of at least 1 and at most 100,000"),
    "poise.states": ("[prompt,null,[prompt,prompt],[1],{prompt: 1}]", "a list, no value twice|one of prompt, response"),
    "poise.signals": ("[length,null,[length,length],[5]]", "a list, no value twice|text, not empty"),
    "poise.end_think": ("['',' ',null,5,[a]]", "text, not empty"),
    "poise.seed": ("[abc,null,1.5,-1,true,100000000000000000000]", "a whole number of at least 0"),
    "poise.weights": ("[null,entropy,[energy]]", "one of uniform, length, energy"),
    "poise.coherence": ("[-0.1,1.5,nan,true,null]", "a finite number of at least 0 and at most 1"),
    "poise.surprise": ("[-1,5,inf,true,null]", "a finite number of at least 0 and at most 4"),
    "poise.weight_cap": ("[0,1.5,nan,true,abc]", "a finite number above 0 and at most 1 or null"),
    "poise.fit": ("[null,late,true]", "one of lagged, fresh"),
    "poise.probe.min_updates": ("[0.5,-1,null]", "a whole number of at least 0"),
    "poise.select": ("[null,5,[],pass_rate]", "a mapping with the keys candidates, "),
    "poise.select.candidates": ("[0,4.0,nan,null,true,1001]", "a whole number of at least 1"),
    "poise.select.rule": ("[null,best,[energy]]", "one of pass_rate, energy, random"),
    "poise.select.power": ("[-1,nan,null,abc]", "a finite number of at least 0"),
    "poise.select.random_share": ("[-0.1,1.1,nan,null]", "a finite number of at least 0 and at most 1"),
    "poise.select.max_age": ("[0,2.5,nan,true]", "a whole number of at least 1 or null"),
    "poise.select.repeat": ("[maybe,2,null]", "true or false"),
    "poise.select.seed": ("[-1,1.5,null]", "a whole number of at least 0"),
    "poise.rollouts": ("[null,more,2]", "one of fixed, adaptive"),
    "poise.seeded_rollouts": ("[maybe,2,null,'true']", "true or false"),
    "poise.probe": ("[null,5,[],ridge]", "a mapping with the keys borrow_rows, "),
    "poise.probe.kind": ("[null,forest,[ridge]]", "one of subspace_ridge, "),
    "poise.probe.guard": ("[null,false,on]", "one of combine, switch, off, rloo, constant"),
    "poise.probe.window_rows": ("[1e3,4096.5,nan,1000000000000,abc,null,'4096']", "a whole number of at least 1"),
    "poise.probe.min_rows": ("[64.5,nan,true,null]", "a whole number of at least 1"),
    "poise.probe.rank": ("[9.5,nan,1e1,null]", "a whole number of at least 1"),
    "poise.probe.exact_features": ("[512.5,nan,null]", "a whole number of at least 1"),
    "poise.probe.max_age": ("[2.5,nan,inf,true,abc]", "a whole number of at least 1 or null"),
    "poise.probe.borrow_rows": ("[0.5,nan,null]", "a whole number of at least 0"),
    "poise.probe.penalties": ("[1.0,null,[],[nan],[inf],[0],['1e-3'],[true]]", "a list, not empty|number above 0"),
    "poise.probe.domains": ("[null,{math: null},{math: ''},{math: 5},abc]", "a mapping|text, not empty"),
    "poise.probe.domain_rows": ("[null,{default: nan},{default: 100.5},{default: null}]", "a mapping|a whole number"),
    "poise.dump_features": ("[null,5,dump]", "a mapping with the keys blocks, "),
    "poise.dump_features.folder": ("['',5,[a]]", "text, not empty or null"),
    "poise.dump_features.every": ("[1.5,nan,true,null,0]", "a whole number of at least 1"),
    "poise.dump_features.blocks": ("[null,1,[true],[a],[1,1],[nan]]", "a list, no value twice|a whole number of at"),
    "poise.dump_features.num_tokens": ("[null,4,[1.5],[0],[4,4]]", "a list, no value twice|a whole number of at"),
    "actor_rollout_ref.rollout.n": ("[2.5,nan,null,'2',true,0,1e0]", "a whole number of at least 1"),
    "actor_rollout_ref.model.path": ("[null,'',5,[a]]", "text, not empty"),
    "actor_rollout_ref.model.external_lib": ("[5,'',[5]]", "text, not empty or a list"),
    "actor_rollout_ref.model.trust_remote_code": ("[maybe,1]", "true or false"),
    "algorithm.rollout_correction.bypass_mode": ("[maybe,0]", "true or false or null"),
    "critic.enable": ("[maybe,1]", "true or false"),
    "data.max_response_length": ("[64.5,null,'64']", "a whole number of at least 1"),
    "trainer.default_local_dir": ("[null,'',5]", "text, not empty"),
    "trainer.use_v1": ("[maybe,1]", "true or false"),
}


@pytest.mark.parametrize("path", WRONG_VALUES)
def test_values_of_another_type_are_refused_by_name(path):
    """As Hydra's command line gives them."""
    values, wanted = WRONG_VALUES[path]
    config = composed(f"+wrong={values}")
    for value in OmegaConf.to_container(config.wrong):
        OmegaConf.update(config, path, value, merge=False)
        with pytest.raises(ValueError, match=rf"^{path}[^ ]*=.*: want .*({wanted})"):
            check_config(config)


@pytest.mark.parametrize("cls", [PoiseConfig, DumpSettings])
def test_no_field_takes_what_is_nothing(cls):
    """Also fields that will be added."""
    for entry in fields(cls):
        for wrong in (object(), float("nan"), float("inf")):
            with pytest.raises(ValueError, match=f"^{entry.name}="):
                cls(**{entry.name: wrong})


def test_nothing_in_place_of_the_settings_is_refused():
    for value in (None, 5, [1]):
        config = composed()
        config.poise = value
        with pytest.raises(ValueError, match="^poise=.*: want a mapping with the keys block, "):
            check_config(config)


def test_numbers_in_a_file_are_what_yaml_says(tmp_path):
    """1e3 is a float in OmegaConf's YAML, on the command line and in JSON, and so no whole number; penalties may be
    written so."""
    (tmp_path / "own.yaml").write_text("poise: {probe: {penalties: [1e-3, 1], window_rows: 1e3}}")
    config = OmegaConf.merge(composed(), OmegaConf.load(tmp_path / "own.yaml"))
    with pytest.raises(ValueError, match="poise.probe.window_rows=1000.0: want .* for instance 1000$"):
        check_config(config)
    config.poise.probe.window_rows = 1000
    assert check_config(config).probe.penalties == (0.001, 1.0)


def test_other_methods_settings_are_checked_too():
    config = composed(
        "algorithm.adv_estimator=grpo", "poise.seeded_rollouts=True", "actor_rollout_ref.rollout.seed=abc"
    )
    with pytest.raises(ValueError, match="actor_rollout_ref.rollout.seed='abc': want a whole number"):
        check_types(config)


def test_one_rollout_is_allowed_for_a_prompt_only_probe():
    poise = check_config(composed("actor_rollout_ref.rollout.n=1", "poise.states=[prompt]", "poise.signals=[]"))
    assert poise.prompt_only


@pytest.mark.parametrize(("block", "message"), [("4", "block"), ("-1", "block"), ("1.5", "block")])
def test_a_block_that_the_model_lacks_is_refused(tmp_path, block, message):
    from transformers import Qwen3Config

    Qwen3Config(num_hidden_layers=4).save_pretrained(tmp_path)
    config = composed(f"actor_rollout_ref.model.path={tmp_path}", f"poise.block={block}")
    with pytest.raises(ValueError, match=f"poise.{message}"):
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


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+poise.blok=1"], "unknown setting poise.blok"),
        (["algorithm.adv_estimator=grpo", "poise.seeded_rollouts=maybe"], "poise.seeded_rollouts='maybe': want true"),
    ],
)
def test_the_entry_refuses_before_ray_starts(overrides, message):
    """The real command, on a config that cannot work, ends within seconds with the message."""
    import subprocess
    import sys

    command = [sys.executable, "-m", "recipe.poise.main_poise", "--config-name", "poise_quickstart", *overrides]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=180, env=os.environ | {"VERL_PLATFORM": "cpu"}
    )
    assert result.returncode != 0
    assert message in result.stderr and "Started a local Ray" not in result.stdout + result.stderr


@pytest.mark.parametrize("setting", ["poise.select.candidates=4", "poise.rollouts=adaptive"])
def test_prompts_are_not_chosen_under_another_estimator(setting):
    with pytest.raises(ValueError, match="algorithm.adv_estimator=grpo: prompts are judged by POISE's probe"):
        check_types(composed("algorithm.adv_estimator=grpo", setting))
    assert not check_types(composed("algorithm.adv_estimator=grpo")).choosing
