"""POISE's own settings (the key ``poise`` of the run's config) and the checks at start."""

import logging
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from omegaconf import DictConfig, OmegaConf

from probe import ProbeSettings
from probe.checked import DISTINCT, Range, SettingError, checked, read, settle
from probe.settings import Count, Fit, Text, Weights
from recipe.poise.capture.dump import Block, DumpSettings, Tokens
from recipe.poise.capture.energy import AGGREGATIONS, DEFAULT_FORM, EnergyForm
from recipe.poise.capture.signals import DEFAULT_SIGNALS, PROMPT_ONLY_SIGNALS, REWARD, check_signals
from recipe.poise.capture.stream import CaptureSettings
from recipe.poise.choose.settings import Rollouts, SelectSettings
from recipe.poise.correction import check_bypass
from recipe.poise.separate import check_separate

logger = logging.getLogger(__name__)

ENGINE_MODULE = "recipe.poise.capture.engine"
TRAINER_MODES = ("sync", "colocate_async", "separate_async")
State = Literal["prompt", "response"]
STATES: tuple[State, ...] = get_args(State)
VERL_SETTINGS: dict[str, Any] = {
    "actor_rollout_ref.rollout.n": Count,
    "actor_rollout_ref.model.path": Text,
    "actor_rollout_ref.model.hf_config_path": Text | None,
    "actor_rollout_ref.model.trust_remote_code": bool,
    "actor_rollout_ref.model.external_lib": Text | tuple[Text, ...] | None,
    "actor_rollout_ref.actor.strategy": Text,
    "actor_rollout_ref.actor.loss_agg_mode": Text,
    "actor_rollout_ref.actor.calculate_sum_pi_squared": bool | None,
    "algorithm.adv_estimator": Text,
    "algorithm.rollout_correction.bypass_mode": bool | None,
    "critic.enable": bool | None,
    "data.max_response_length": Count,
    "trainer.default_local_dir": Text,
    "trainer.device": Text,
    "trainer.use_v1": bool,
    "trainer.v1.trainer_mode": Text,
}  # what is read here and in the trainers of verl's own settings


@dataclass(frozen=True)
class PoiseConfig:
    """Settings under ``poise``; an unknown key is an error, and so is a value of another type (see probe/checked.py).

    Attributes:
        block: decoder block whose output is read, counted from 0; or a fraction of depth in [0, 1). Default: the
            paper's 19 of 36.
        num_tokens: how many tokens a state is the mean of (paper: 10 for Qwen3-4B, 32 for OLMo3-7B).
        states: which states are features: prompt (last prompt tokens), response (the last tokens of the response that
            the policy wrote itself, up to and including the last ``</think>``). Neither a state nor a signal: baselines
            are made of rewards alone, as probe.guard says.
        signals: scalar features by name, see recipe/poise/capture/signals.py; "reward" is the rollout's own reward,
            from which the sibling's baseline gets RLOO's information too.
        end_think: the token that ends the reasoning; a tokenizer without it gets one warning.
        weights: what a row counts in the probe's fit, the penalty, the guard, the constant and RLOO. uniform: all
            alike; energy: the squared norm of its score, from the log-prob pass, see recipe/poise/capture/energy.py;
            length: its number of tokens.
        surprise: how much more a rare token counts in the energy: power of its -log pi beside 1 - pi; 0: not at all.
        coherence: how far the scores of a response's tokens pull the same way, 0 to 1: what the energy takes of the
            square of their sum.
        weight_cap: a row weighs at most this quantile of what earlier steps' rows weighed (0.99: the heaviest hundredth
            is cut); null: no limit.
        fit: lagged: the probe that gives a step's baselines was fitted on earlier steps; fresh: also on the step's
            other prompts, in closed form for the linear kinds, in folds for the others; see probe/cross_fit.py.
        probe: settings of the value probe, see probe/settings.
        select: which prompts are asked, see recipe/poise/choose/settings.py.
        rollouts: fixed: as many for each prompt (actor_rollout_ref.rollout.n). adaptive: as many on average, more where
            the prompt probe holds the outcome open, one where it is clear; in trainer_mode sync.
        seed: of the probe's random projections.
        dump_features: feature dumps for `python -m probe.study`, see recipe/poise/capture/dump.py.
        seeded_rollouts: give each rollout a sampling seed of its own, so that a run repeats and a resumed run goes on
            as the unbroken one would have (single-turn rollouts; costs vLLM a generator per request).
        poll_interval_s: seconds between two looks for finished rollouts (verl's own: 2), for every estimator. A step
            waits half of it in the mean, which is seen where steps take seconds.
    """

    block: Block = 19 / 36
    num_tokens: Tokens = 10
    states: Annotated[tuple[State, ...], DISTINCT] = STATES
    signals: Annotated[tuple[Text, ...], DISTINCT] = DEFAULT_SIGNALS
    end_think: Text = "</think>"
    weights: Weights = "energy"
    surprise: Annotated[float, Range(0, 4)] = DEFAULT_FORM.surprise
    coherence: Annotated[float, Range(0, 1)] = DEFAULT_FORM.coherence
    weight_cap: Annotated[float, Range(above=0, high=1)] | None = None
    fit: Fit = "fresh"
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    select: SelectSettings = field(default_factory=SelectSettings)
    rollouts: Rollouts = "fixed"
    seed: Annotated[int, Range(0)] = 0
    dump_features: DumpSettings = field(default_factory=DumpSettings)
    seeded_rollouts: bool = False
    poll_interval_s: Annotated[float, Range(above=0)] = 2.0

    def __post_init__(self):
        settle(self)
        check_signals(self.signals)
        if not (self.states or self.signals) and self.probe.guard == "off":
            raise SettingError(
                "states", self.states, "a feature here or in signals: probe.guard=off leaves the probe alone", STATES
            )
        try:
            self.select.check(self.weights)
        except SettingError as error:
            raise error.under("select") from None
        if self.choosing and "prompt" not in self.states:
            raise SettingError("states", self.states, "prompt among them: select and rollouts are made of its state")

    @property
    def choosing(self) -> bool:
        """Whether candidates are judged by a pass over prompts."""
        return self.select.on or self.rollouts == "adaptive"

    @property
    def prompt_only(self) -> bool:
        """Whether no feature depends on the rollout, so that a row's own value is an unbiased baseline for it."""
        return "response" not in self.states and set(self.signals) <= set(PROMPT_ONLY_SIGNALS)


def read_poise_config(config: DictConfig) -> PoiseConfig:
    """The settings under ``poise``.

    Raises:
        ValueError: an unknown key, or a value of another type or out of range, named with its path.
    """
    node = OmegaConf.select(config, "poise")
    values = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    return read(PoiseConfig, values, "poise")


def check_types(config: DictConfig) -> PoiseConfig:
    """Read POISE's settings, and check what is read of verl's: the part of the check that every method needs.

    Raises:
        ValueError: with the setting, its value and what is wanted.
    """
    poise = read_poise_config(config)
    kinds = VERL_SETTINGS | ({"actor_rollout_ref.rollout.seed": int} if poise.seeded_rollouts else {})
    for path, kind in kinds.items():
        checked(OmegaConf.select(config, path), kind, path)
    estimator = config.algorithm.adv_estimator
    if poise.choosing and estimator != "poise":
        raise ValueError(
            f"poise.select.candidates={poise.select.candidates} poise.rollouts={poise.rollouts} with "
            f"algorithm.adv_estimator={estimator}: prompts are judged by POISE's probe, which this run lacks. Set "
            "algorithm.adv_estimator=poise, or poise.select.candidates=1 poise.rollouts=fixed"
        )
    check_separate(config)
    return poise


def check_config(config: DictConfig) -> PoiseConfig:
    """Refuse, before anything is started, a run that could not work, and say what to change.

    Raises:
        ValueError: with the setting at fault and its remedy.
    """
    poise = check_types(config)
    actor, rollout, model = (config.actor_rollout_ref[key] for key in ("actor", "rollout", "model"))

    def refuse_if(condition: bool, message: str) -> None:
        if condition:
            raise ValueError(message)

    refuse_if(not config.trainer.use_v1, "POISE needs verl's V1 trainer: set trainer.use_v1=True")
    mode = config.trainer.v1.trainer_mode
    refuse_if(mode not in TRAINER_MODES, f"trainer.v1.trainer_mode={mode}: POISE runs in {', '.join(TRAINER_MODES)}")
    passed = [name for name in poise.signals if name != REWARD]
    check_bypass(config, poise.states, passed, poise.dump_features.folder is not None)
    refuse_if(
        actor.strategy not in ("fsdp", "fsdp2"),
        f"actor_rollout_ref.actor.strategy={actor.strategy}: POISE captures in verl's fsdp and fsdp2 engines",
    )
    refuse_if(
        config.trainer.device == "cpu" and actor.strategy != "fsdp2",
        "on a CPU only fsdp2 works: set actor_rollout_ref.actor.strategy=fsdp2",
    )
    libs = model.external_lib if not isinstance(model.external_lib, str) else model.external_lib.split(",")
    refuse_if(
        ENGINE_MODULE not in (libs or []),
        f"actor_rollout_ref.model.external_lib={model.external_lib} must name {ENGINE_MODULE}, the engine with capture",
    )
    refuse_if(
        not config.critic.enable or config.critic.model is not None,
        "the probe sits in verl's critic seat: set critic.enable=True critic.model=null",
    )
    refuse_if(
        rollout.n == 1 and not poise.prompt_only,
        f"actor_rollout_ref.rollout.n={rollout.n}: a baseline from the rollout's own response state or signals "
        "would be biased, so it must come from a sibling. Set n>=2, or n=1 with features of the prompt alone "
        "(poise.states=[prompt] poise.signals=[]).",
    )
    refuse_if(
        rollout.n == 1 and not poise.states and poise.probe.guard == "rloo",
        "actor_rollout_ref.rollout.n=1 poise.states=[] poise.probe.guard=rloo: a rollout has no siblings whose rewards "
        "its baseline could be. Set n>=2, or poise.probe.guard=constant",
    )
    refuse_if(
        actor.loss_agg_mode not in AGGREGATIONS,
        f"actor_rollout_ref.actor.loss_agg_mode={actor.loss_agg_mode}: how much a rollout's score weighs is known for "
        f"{', '.join(AGGREGATIONS)}",
    )
    refuse_if(
        bool(actor.get("calculate_sum_pi_squared")) and bool(model.get("use_fused_kernels")),
        "actor_rollout_ref.actor.calculate_sum_pi_squared=True needs the logits, which fused kernels do not keep: set "
        "actor_rollout_ref.model.use_fused_kernels=False, or leave the energy to the chosen tokens' log-probs",
    )
    refuse_if(
        poise.rollouts == "adaptive" and (mode != "sync" or rollout.n < 2),
        f"poise.rollouts=adaptive, trainer.v1.trainer_mode={mode}, actor_rollout_ref.rollout.n={rollout.n}: only in "
        "mode sync does a step hold a whole budget, and n=1 leaves nothing to give. Set sync and n>=2, or fixed",
    )
    refuse_if(
        poise.choosing and mode == "separate_async",
        f"poise.select.candidates={poise.select.candidates} with trainer.v1.trainer_mode={mode}: prompts are chosen "
        "once a step, while rollouts of earlier choices still run. Set candidates=1, or another mode",
    )
    poise.dump_features.check_folder()
    return poise


def capture_settings(
    poise: PoiseConfig, tokenizer, max_response_length: int, loss_agg_mode: str = "token-mean"
) -> CaptureSettings:
    """What the engine needs of the settings and the tokenizer; warns once where there is no token for `end_think`."""
    ids = tokenizer.encode(poise.end_think, add_special_tokens=False)
    if len(ids) != 1:
        logger.warning(
            "the tokenizer has no single token %r: the response state is the mean of the last %d response tokens",
            poise.end_think,
            poise.num_tokens,
        )
    return CaptureSettings(
        block=poise.block,
        num_tokens=poise.num_tokens,
        states=poise.states,
        signals=tuple(name for name in poise.signals if name != REWARD),
        end_think_id=ids[0] if len(ids) == 1 else None,
        eos_token_ids=(tokenizer.eos_token_id,),
        max_response_length=max_response_length,
        loss_agg_mode=loss_agg_mode,
        energy=EnergyForm(poise.surprise, poise.coherence),
        dump=poise.dump_features,
    )


def check_block(poise: PoiseConfig, config: DictConfig) -> None:
    """Read the model's own config and check that the blocks exist.

    Raises:
        ValueError: a block out of range. OSError (transformers): the model's folder or hub id cannot be read.
    """
    from transformers import AutoConfig
    from verl.utils.fs import copy_to_local

    from recipe.poise.capture.hook import resolve_block

    model = config.actor_rollout_ref.model
    path = copy_to_local(model.get("hf_config_path") or model.path)
    hf_config = AutoConfig.from_pretrained(path, trust_remote_code=model.get("trust_remote_code", False))
    hf_config = getattr(hf_config, "text_config", hf_config)
    blocks = {f"poise.dump_features.blocks[{place}]": b for place, b in enumerate(poise.dump_features.blocks)}
    for path, block in {"poise.block": poise.block, **blocks}.items():
        try:
            resolve_block(block, hf_config.num_hidden_layers)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
