"""verl's rollout correction (``algorithm.rollout_correction``), as far as it decides what POISE can know of a step.

With ``bypass_mode`` there is no log-prob pass: the rollout's own log-probs stand for those of the old policy. What is
then left to make a baseline of, and what is not, is in docs/bypass.md.
"""

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

KEY = "algorithm.rollout_correction"
IN_THE_LOSS = "actor_rollout_ref.actor.policy_loss"


def bypasses(config: DictConfig) -> bool:
    """Whether verl skips the log-prob pass."""
    return bool(OmegaConf.select(config, f"{KEY}.bypass_mode"))


def rejects(config: DictConfig) -> bool:
    """Whether rows are rejected where the trainer sees it: after the log-prob pass, before the advantages."""
    return not bypasses(config) and OmegaConf.select(config, f"{KEY}.rollout_rs") is not None


def check_bypass(config: DictConfig, states: Sequence[str], passed: Sequence[str], dumped: bool) -> None:
    """Refuse what cannot be had without a log-prob pass.

    Args:
        states, passed: the features that are asked for; of the signals, those that the pass gives.
        dumped: whether features are to be dumped.

    Raises:
        ValueError: with the setting at fault, the reason and the remedy.
    """
    if not bypasses(config):
        return
    start = f"{KEY}.bypass_mode=True skips the log-prob pass"
    if "response" in states:
        raise ValueError(
            f"{start}: poise.states={list(states)}, but a response's states would first be there in the actor's "
            "update, when the advantages have been made. Set poise.states=[prompt] (a pass over the prompts alone) or "
            "poise.states=[] (siblings' rewards)."
        )
    if passed:
        raise ValueError(
            f"{start}, from which poise.signals={list(passed)} would come. Set poise.signals=[], or bypass_mode=False."
        )
    if dumped:
        raise ValueError(
            f"{start}, whose features poise.dump_features.folder asks for. Set it to null, or bypass_mode=False."
        )
    if OmegaConf.select(config, "actor_rollout_ref.actor.calculate_sum_pi_squared"):
        raise ValueError(
            f"{start}, and the rollout tells the chosen tokens' log-probs alone: set "
            "actor_rollout_ref.actor.calculate_sum_pi_squared=False"
        )
    if not OmegaConf.select(config, "actor_rollout_ref.rollout.calculate_log_probs"):
        raise ValueError(
            f"{start} and takes the rollout's log-probs: set actor_rollout_ref.rollout.calculate_log_probs=True"
        )
    for name in ("rollout_is", "rollout_rs"):
        value = OmegaConf.select(config, f"{KEY}.{name}")
        if value is not None:
            raise ValueError(
                f"{KEY}.{name}={value}: with bypass_mode=True verl's V1 trainer does not look at it, the actor's loss "
                f"corrects. Set {IN_THE_LOSS}.loss_mode=bypass_mode +{IN_THE_LOSS}.rollout_correction.{name}={value}, "
                f"and {KEY}.{name}=null."
            )
