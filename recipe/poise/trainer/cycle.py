"""Metrics of a step in which verl updates several times (``parameter_sync_step`` > 1 in separate_async).

verl reduces by words in a metric's name ("min", "max", "sum"), else by the mean over rows: it would average token
counts, and take the smallest of whatever belongs to a domain called minerva. Ours are reduced here, by what they are.
"""

from verl.trainer.ppo.v1.trainer_base import PPOTrainer

OURS = ("poise/", "rollout/", "advantage/", "reward/")
ROWS = "rollout/rows"
LAST = ("window_rows", "penalty", "own_share")
COUNTS = ("generated_tokens", "discarded_tokens", "state_pass_tokens", "prompts", "rows")


def reduce_ours(updates: list[dict[str, float]]) -> dict[str, float]:
    """One value for each metric of ours: counts and seconds are summed, maxima stay the largest, what a window or a fit
    is in the end is the last update's, the rest are means over rows; updates that lack a metric have no say in it.

    Args:
        updates: metrics of the updates of a step, in order.
    """
    names = dict.fromkeys(name for update in updates for name in update if name.startswith(OURS))
    found = {}
    for name in names:
        having = [update for update in updates if name in update]
        values = [float(update[name]) for update in having]
        last = name.rsplit("/", 1)[-1]
        if last in LAST:
            found[name] = values[-1]
        elif last in COUNTS or last.startswith(("left_out_", "time_")):
            found[name] = sum(values)
        elif last.endswith("_max"):
            found[name] = max(values)
        else:
            rows = [float(update.get(ROWS, 1.0)) for update in having]
            found[name] = sum(v * r for v, r in zip(values, rows, strict=True)) / max(sum(rows), 1e-30)
    return found


class CycleMixin(PPOTrainer):
    """Reduces our metrics over the updates of a step."""

    _updates: list[dict[str, float]]

    def _step_once(self, metrics, timing_raw, sample_batch_size):
        batch = super()._step_once(metrics, timing_raw, sample_batch_size)
        self._updates.append(dict(metrics))
        return batch

    def step(self, metrics, timing_raw):
        self._updates = []
        batch = super().step(metrics, timing_raw)
        if len(self._updates) > 1:
            metrics |= reduce_ours(self._updates)
        return batch
