"""POISE in verl's V1 trainers: a mix-in that overrides named hooks and calls verl's own method in each.

Order in a step (verl's): log-prob pass with capture, or where verl has none a pass over the step's prompts; predict
(lagged, or cross-fitted on the present rows too), advantages, fit, actor update.
"""

import dataclasses

import ray
import torch
import transfer_queue as tq
from tensordict import TensorDict
from verl.trainer.ppo.utils import Role

from recipe.poise.baseline.estimator import Pairing, pairing
from recipe.poise.baseline.inputs import ROLLOUT_FIELDS, SESSION_FIELD
from recipe.poise.baseline.rows import Rows, index_rows, plain_column
from recipe.poise.baseline.worker import FIT_FIELDS, INFER_FIELDS, PREDICTION_FIELD, configured
from recipe.poise.capture.dump import DUMP_FLAG
from recipe.poise.capture.engine import CAPTURE_FLAG, ROW_FIELD, flat
from recipe.poise.config import PoiseConfig, capture_settings, read_poise_config
from recipe.poise.correction import bypasses, rejects
from recipe.poise.trainer.base import BaseMixin
from recipe.poise.trainer.choice import ChoiceMixin
from recipe.poise.trainer.rejected import rejected_rows
from recipe.poise.trainer.verdicts import failed_rows


class PoiseMixin(BaseMixin, ChoiceMixin):
    """The probe in the critic's seat, and the way of its predictions to the advantage estimator."""

    def __init__(self, config):
        self.poise: PoiseConfig = read_poise_config(config)
        super().__init__(config)

    def _init_resource_pool_mgr(self):
        super()._init_resource_pool_mgr()
        actor, length = self.config.actor_rollout_ref.actor, self.config.data.max_response_length
        capture = capture_settings(self.poise, self.tokenizer, length, actor.loss_agg_mode)
        n = self.config.actor_rollout_ref.rollout.n
        self.role_worker_mapping[Role.Critic] = ray.remote(configured(self.poise, capture, n, bypasses(self.config)))

    def _compute_old_log_prob(self, batch, metrics):
        rows = index_rows(batch.keys, batch.tags)
        left_out_B = failed_rows(batch)
        fields = {ROW_FIELD: torch.stack([rows.id_B, rows.group_B, self._domains(batch), left_out_B.long()], dim=1)}
        if rows.several:
            first_B = rows.first_B == torch.arange(len(batch))
            fields[SESSION_FIELD] = torch.stack([rows.last_B, first_B.long()], dim=1)
        self._put(batch, fields)
        if bypasses(self.config):
            if self.poise.states:
                metrics.update(self._pass_step_prompts(batch, rows))
            return super()._compute_old_log_prob(batch, metrics)  # the rollout's log-probs are taken
        batch.extra_info[CAPTURE_FLAG] = True  # gone again from the batch that verl's method returns
        if self.config.actor_rollout_ref.actor.get("calculate_sum_pi_squared"):
            batch.extra_info["calculate_sum_pi_squared"] = True  # the engine then knows the exact energy
        dump = self.poise.dump_features
        batch.extra_info[DUMP_FLAG] = dump.folder is not None and self.global_steps % dump.every == 0
        batch = super()._compute_old_log_prob(batch, metrics)
        if rejects(self.config):
            rejected_B = rejected_rows(batch, self.config.algorithm.rollout_correction)
            metrics["poise/rejected_share"] = rejected_B[~rows.padding_B].float().mean().item()
            fields[ROW_FIELD][:, 3] = (left_out_B | rejected_B).long()
            self._put(batch, {ROW_FIELD: fields[ROW_FIELD]})
        return batch

    @staticmethod
    def _put(batch, fields: dict[str, torch.Tensor]) -> None:
        tensors = TensorDict(fields, batch_size=len(batch))
        tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=tensors)

    @property
    def _fit_number(self) -> int:
        """Of this update, counted from 1 over the run: the step, unless a step updates several times."""
        return (self.global_steps - 1) * self.parameter_sync_step + self.local_trigger_step + 1

    def _domains(self, batch) -> torch.Tensor:
        """(B,) int64: the probe of each row, from its data source."""
        if len(self.poise.probe.domain_names) < 2:
            return torch.zeros(len(batch), dtype=torch.int64)
        sources = plain_column(batch, "data_source")
        return torch.tensor([self.poise.probe.domain_index(str(source)) for source in sources])

    def _compute_values(self, batch, metrics):
        fields = INFER_FIELDS + (ROLLOUT_FIELDS if bypasses(self.config) else [])
        fields += [SESSION_FIELD] if index_rows(batch.keys, batch.tags).several else []
        infer = dataclasses.replace(batch, fields=fields)
        infer.extra_info["poise_step"] = self._fit_number
        super()._compute_values(infer, metrics)
        return batch

    def _compute_advantage(self, batch, metrics):
        data = tq.kv_batch_get(
            keys=batch.keys, partition_id=batch.partition_id, select_fields=[PREDICTION_FIELD, ROW_FIELD]
        )
        prediction_B7 = data[PREDICTION_FIELD]
        if prediction_B7.is_nested:
            prediction_B7 = prediction_B7.values().view(len(batch), -1)
        rows: Rows = index_rows(batch.keys, batch.tags)
        inputs = Pairing(
            rows=rows,
            value_B=prediction_B7[:, 0],
            weight_B3=prediction_B7[:, 1:4],
            constant_B=prediction_B7[:, 4],
            left_out_B=flat(data[ROW_FIELD])[:, 3] > 0,
            own_value=self.poise.prompt_only,
            row_weight_B=None if self.poise.weights == "uniform" else prediction_B7[:, 5],
            energy_B=prediction_B7[:, 6],
        )
        with pairing(inputs):
            batch = super()._compute_advantage(batch, metrics)
        if inputs.result is None:
            raise RuntimeError("verl computed advantages without asking the estimator registered as 'poise'")
        metrics.update(inputs.result.metrics())
        return batch

    def _update_critic(self, batch, metrics):
        fit = dataclasses.replace(batch, fields=FIT_FIELDS)
        fit.extra_info["poise_step"] = self._fit_number
        critic_metrics: dict = {}
        super()._update_critic(fit, critic_metrics)
        for name, value in critic_metrics.items():
            if name.startswith("critic/") and value == value:  # NaN: there is nothing to report yet
                metrics["poise/" + name.removeprefix("critic/")] = value
        return batch
