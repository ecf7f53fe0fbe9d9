"""Rows that verl's rollout correction rejects, known before values and fits are made of them."""

import torch
import transfer_queue as tq
from omegaconf import DictConfig
from torch import Tensor
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_rejection_mask


def rejected_rows(batch, correction: DictConfig) -> Tensor:
    """(B,) bool: rows of which verl, in `_compute_advantage`, will leave no token in the loss.

    Args:
        correction: ``algorithm.rollout_correction``, with ``rollout_rs`` and its threshold set.
    """
    fields = ["old_log_probs", "rollout_log_probs", "response_mask"]
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields).to_padded_tensor()
    mask_BL = data["response_mask"]
    kept_BL, _ = compute_rollout_rejection_mask(
        log_ratio=data["old_log_probs"] - data["rollout_log_probs"],
        response_mask=mask_BL,
        rollout_rs=correction.rollout_rs,
        rollout_rs_threshold=correction.rollout_rs_threshold,
    )
    return without_tokens(mask_BL, kept_BL)


def without_tokens(mask_BL: Tensor, kept_BL: Tensor) -> Tensor:
    """(B,) bool: rows that had tokens of their own and have none left."""
    return torch.logical_and((mask_BL > 0).any(dim=1), ~(kept_BL > 0).any(dim=1))
