"""How old the rows of an asynchronous step are."""

from verl.trainer.ppo.v1.trainer_base import PPOTrainer


def staleness(tags: list[dict], version: int) -> dict[str, float]:
    """By how many weight syncs the newest weights that a row was generated with lag behind the trainer's.

    Args:
        tags: verl's, of the batch; padding is left out.
        version: of the weights that the step began with: the step's number less one.
    """
    lag_B = [version - tag["max_global_steps"] for tag in tags if not tag.get("is_padding", False)]
    if not lag_B:
        return {}
    return {
        "poise/staleness_mean": sum(lag_B) / len(lag_B),
        "poise/staleness_max": float(max(lag_B)),
        "poise/staleness_share": sum(lag > 0 for lag in lag_B) / len(lag_B),
    }


class StalenessMixin(PPOTrainer):
    """Logs it."""

    def _compute_advantage(self, batch, metrics):
        metrics.update(staleness(batch.tags, self.global_steps - 1))
        return super()._compute_advantage(batch, metrics)
