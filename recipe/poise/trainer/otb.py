"""The optimal token baseline (OTB, arXiv 2602.07078) in verl's V1 trainers: a baseline per token, the group's mean
reward weighted by each rollout's energy up to that token.

verl has the estimator, `optimal_token_baseline`, and its engines compute the sum of squared probabilities that it
needs; but V1's trainer neither asks for that sum nor hands it on. So the log-prob pass is asked here, and an estimator
of another name ("otb": for verl's own name its trainer insists on a field that V1 never sets) calls verl's function
with what the pass left in TransferQueue.
"""

from dataclasses import dataclass

import transfer_queue as tq
from torch import Tensor
from verl.trainer.ppo.core_algos import compute_optimal_token_baseline_advantage, register_adv_est
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.workers.utils.padding import response_from_nested

from recipe.poise.baseline.handover import Handover

NAME = "otb"
FIELD = "sum_pi_squared"
FLAG = f"calculate_{FIELD}"  # what verl's engines look for


@dataclass
class Tokens:
    """What the estimator needs of a batch beyond verl's arguments; both (B, L), 0 behind a response."""

    old_log_probs: Tensor
    sum_pi_squared: Tensor


using: Handover[Tokens] = Handover(NAME)


@register_adv_est(NAME)
def otb_advantage(
    token_level_rewards: Tensor, response_mask: Tensor, config=None, index=None, **kwargs
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, both (B, L); verl's own function.

    Raises:
        RuntimeError: called by a trainer that is not ours.
    """
    tokens = using.take()
    return compute_optimal_token_baseline_advantage(
        token_level_rewards=token_level_rewards,
        response_mask=response_mask,
        index=index,
        old_log_probs=tokens.old_log_probs,
        sum_pi_squared=tokens.sum_pi_squared,
    )


def check_otb(config) -> None:
    """Refuse what would change the estimate unseen.

    Raises:
        ValueError: with the setting and its remedy.
    """
    correction = config.algorithm.get("rollout_correction") or {}
    if correction.get("bypass_mode") or correction.get("rollout_is"):
        raise ValueError(
            "algorithm.adv_estimator=otb needs the log-prob pass, and takes no importance weights: set "
            "algorithm.rollout_correction.bypass_mode=False algorithm.rollout_correction.rollout_is=null"
        )
    if config.actor_rollout_ref.model.get("use_fused_kernels"):
        raise ValueError(
            "algorithm.adv_estimator=otb needs the logits, which fused kernels do not keep: set "
            "actor_rollout_ref.model.use_fused_kernels=False"
        )


class OtbMixin(PPOTrainer):
    """Asks the log-prob pass for the sum of squared probabilities, and hands it to the estimator."""

    def _compute_old_log_prob(self, batch, metrics):
        batch.extra_info[FLAG] = True  # gone again from the batch that verl's method returns
        return super()._compute_old_log_prob(batch, metrics)

    def _compute_advantage(self, batch, metrics):
        fields = [FIELD, "old_log_probs", "response_mask"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        data[FIELD] = response_from_nested(data.pop(FIELD), data["response_mask"])
        padded = data.to_padded_tensor()
        with using(Tokens(padded["old_log_probs"], padded[FIELD])):
            return super()._compute_advantage(batch, metrics)
