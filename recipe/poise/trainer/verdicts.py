"""Rows on which the verifier gave no judgement: they get advantage zero, and their share is a metric.

A reward function says so by ``verifier_failed`` in its result (`reward.router`); verl keeps it with the rollout.
"""

from pathlib import Path

import torch
import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from torch import Tensor
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

import reward.router
from recipe.poise.baseline.rows import plain_column

METRIC = "reward/verifier_failed_share"


def failed_rows(batch) -> Tensor:
    """(B,) bool: the rows of a batch whose verifier failed."""
    told = [fields.get("reward_extra_info") or {} for fields in plain_column(batch, "extra_fields")]
    return torch.tensor([bool(info.get("verifier_failed", 0.0)) for info in told])


class VerdictMixin(PPOTrainer):
    """Takes failed rows out of the update, whatever the estimator."""

    def _compute_advantage(self, batch, metrics):
        batch = super()._compute_advantage(batch, metrics)
        failed_B = failed_rows(batch)
        real_B = torch.tensor([not tag.get("is_padding", False) for tag in batch.tags])
        metrics[METRIC] = failed_B[real_B].float().mean().item()
        if failed_B.any():
            data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["advantages"])
            advantages = data["advantages"]
            lengths = advantages.offsets().diff()
            kept_T = torch.repeat_interleave((~failed_B).to(advantages.dtype), lengths.cpu())
            zeroed = torch.nested.nested_tensor_from_jagged(advantages.values() * kept_T, advantages.offsets())
            batch = tq.kv_batch_put(
                keys=batch.keys,
                partition_id=batch.partition_id,
                fields=TensorDict({"advantages": zeroed}, batch_size=len(batch)),
            )
        return batch


def check_reward(config: DictConfig) -> None:
    """Where the router is the reward function: every data source must have a verifier that can work here.

    Raises:
        ValueError: names the source or the option. RuntimeError: a verifier cannot work on this machine.
    """
    custom = config.reward.custom_reward_function
    path = str(custom.get("path") or "")
    ours = path in ("pkg://reward.router", "reward.router") or (
        path.endswith(".py") and Path(path).resolve() == Path(reward.router.__file__).resolve()
    )
    if not ours:
        return
    kwargs = OmegaConf.to_container(custom.get("reward_kwargs") or OmegaConf.create({}), resolve=True)
    reward.router.check_kwargs(kwargs)  # type: ignore[arg-type]
    listed = [config.data.train_files, config.data.val_files]
    files = [str(file) for entry in listed for file in ([entry] if isinstance(entry, str) else entry or [])]
    # files on a distributed filesystem are copied by verl later; an unknown source in them is an error at its first row
    local = [file for file in files if file.endswith(".parquet") and Path(file).exists()]
    reward.router.check_sources(local, kwargs.get("routes"))  # type: ignore[union-attr]
