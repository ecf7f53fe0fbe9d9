"""What a comparison of methods counts beyond verl's own metrics: every token that was generated, and what the
advantages are like. Logged by every run of the entry, whatever the estimator.

Names: ``rollout/generated_tokens`` (responses of the step, those that dynamic sampling threw away too),
``rollout/discarded_tokens`` (the latter), ``rollout/prompts``, ``rollout/rows`` (of the update),
``advantage/variance`` and ``advantage/zero_share`` (over rows).
"""

import torch
import transfer_queue as tq
from torch import Tensor
from verl.trainer.ppo.v1.trainer_base import PPOTrainer


def row_advantages(advantages: Tensor) -> Tensor:
    """(B,) the mean over a row's response tokens, from verl's nested (B, L*); 0 for an empty row."""
    offsets = advantages.offsets()  # type: ignore[attr-defined]
    lengths = offsets.diff()
    row = torch.repeat_interleave(torch.arange(len(lengths)), lengths.cpu())
    total = torch.zeros(len(lengths)).index_add_(0, row, advantages.values().float().cpu())
    return total / lengths.cpu().clamp(min=1)


class DiscardCounter:
    """Response tokens of the groups that a replay buffer throws away.

    verl's buffer counts groups only; their lengths are in the tags that it drops in `_clear_groups`.
    """

    def __init__(self, buffer):
        self._clear, self._buffer, self._tokens = buffer._clear_groups, buffer, 0
        buffer._clear_groups = self

    def __call__(self, partition_id: str, uids: set[str]) -> None:
        if partition_id == "train":
            known = self._buffer.partitions[partition_id].items()
            self._tokens += sum(tag.get("response_len", 0) for key, tag in known if key.split("_")[0] in uids)
        self._clear(partition_id, uids)

    def take(self) -> int:
        """Tokens since the last call."""
        found, self._tokens = self._tokens, 0
        return found


class CountsMixin(PPOTrainer):
    """Logs the counts of a step."""

    def _build_replay_buffer(self):
        buffer = super()._build_replay_buffer()
        self._discards = DiscardCounter(buffer)
        return buffer

    def _compute_advantage(self, batch, metrics):
        batch = super()._compute_advantage(batch, metrics)
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["advantages"])
        real_B = torch.tensor([not tag.get("is_padding", False) for tag in batch.tags])
        advantage_B = row_advantages(data["advantages"])[real_B]
        kept = [tag for tag in batch.tags if not tag.get("is_padding", False)]
        uids = {key.rsplit("_", 2)[0] for key, real in zip(batch.keys, real_B.tolist(), strict=True) if real}
        discarded = self._discards.take()
        metrics |= {
            "rollout/generated_tokens": sum(tag["response_len"] for tag in kept) + discarded,
            "rollout/discarded_tokens": discarded,
            "rollout/prompts": len(uids),
            "rollout/rows": len(kept),
            "advantage/variance": advantage_B.var().item() if len(kept) > 1 else 0.0,
            "advantage/zero_share": (advantage_B == 0).float().mean().item(),
        }
        return batch
