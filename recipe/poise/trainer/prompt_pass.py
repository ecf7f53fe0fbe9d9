"""Prompts alone through the actor's engine: the candidates of a choice, or a step's prompts where there is no log-prob
pass."""

import time

import transfer_queue as tq
from torch import Tensor
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from recipe.poise.baseline.rows import Rows, plain_column
from recipe.poise.choose.prompts import prompt_batch


class PromptPassMixin(PPOTrainer):
    """Passes over prompts; their states are left in the workers that computed them (`capture.stream`)."""

    def _pass_prompts(self, tokens: list[Tensor]) -> None:
        """One row for each prompt, numbered as they come."""
        rollout = self.config.actor_rollout_ref.rollout
        multiple = 1 if rollout.log_prob_use_dynamic_bsz else rollout.log_prob_micro_batch_size_per_gpu
        self.actor_rollout_wg.compute_log_prob(prompt_batch(tokens, self._actor_ranks(), multiple))

    def _actor_ranks(self) -> int:
        """Ranks that the actor's rows are spread over, as verl's `_balance_batch` asks."""
        known = self.actor_rollout_wg._dispatch_info
        if "actor" not in known:
            known["actor"] = self.actor_rollout_wg._query_dispatch_info("actor")
        return max(known["actor"]) + 1

    def _pass_step_prompts(self, batch, rows: Rows) -> dict[str, float]:
        """The prompts of a step's rows, by group, as the rollout saw them; what that cost.

        Raises:
            ValueError: a prompt has images, videos or sound.
        """
        start = time.perf_counter()
        keys, tags = ([column[row] for row in rows.prompts] for column in (batch.keys, batch.tags))
        first = tq.KVBatchMeta(keys=keys, tags=tags, partition_id=batch.partition_id)
        if self.processor is not None:
            refuse_media(plain_column(first, "multi_modal_inputs"))
        data = tq.kv_batch_get(keys=first.keys, partition_id=first.partition_id, select_fields=["prompts"])
        tokens = list(data["prompts"].unbind())
        self._pass_prompts(tokens)
        return {
            "poise/state_pass_tokens": float(sum(map(len, tokens))),
            "poise/time_state_pass_s": time.perf_counter() - start,
        }


def refuse_media(inputs: list[dict]) -> None:
    """Raises ValueError where a prompt is not of text alone."""
    kinds = {name for row in inputs for name in row or {}}
    if kinds:
        raise ValueError(
            f"prompts of this step have {', '.join(sorted(kinds))}: states are read from prompts of text alone. Set "
            "algorithm.rollout_correction.bypass_mode=False, or poise.states=[]"
        )
