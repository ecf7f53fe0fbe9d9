"""Single-stream policy optimisation (SPO, arXiv 2509.13232): one rollout per prompt, the baseline from a tracker of
each prompt's own success rate.

The tracker is a Beta distribution per prompt whose counts are discounted before each new outcome. Three simplifications
to the paper, the first two in its disfavour where prompts come back seldom: the discount is constant instead of a
function of the policy's KL divergence since the last visit (the paper clips it to [0.875, 0.96]); a prompt that was
never seen starts from the mean of all outcomes so far instead of eight rollouts made beforehand; and prompts are drawn
as verl draws them, not by priority.
"""

import hashlib
import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transfer_queue as tq
from torch import Tensor
from verl.trainer.ppo.core_algos import register_adv_est

from probe.metrics import pearson
from recipe.poise.baseline.handover import Handover
from recipe.poise.baseline.rows import index_rows
from recipe.poise.trainer.verdicts import VerdictMixin, failed_rows

NAME = "spo"
FILE = "spo_tracker.json"


@dataclass
class BetaTracker:
    """Success counts per prompt.

    Attributes:
        discount: of earlier outcomes at each visit.
        counts: prompt -> (successes, failures), discounted.
        total: sum and number of all outcomes, undiscounted: the prior of a prompt not yet seen.
    """

    discount: float = 0.9
    counts: dict[str, tuple[float, float]] = field(default_factory=dict)
    total: tuple[float, int] = (0.0, 0)

    def value(self, prompt: str) -> float:
        """Expected reward of a prompt, from earlier visits alone."""
        if prompt in self.counts:
            good, bad = self.counts[prompt]
            return good / (good + bad)
        return self.total[0] / self.total[1] if self.total[1] else 0.5

    def update(self, prompt: str, reward: float) -> None:
        """One outcome in [0, 1]; the prior weighs as many visits as the discount remembers."""
        if not 0.0 <= reward <= 1.0:
            raise ValueError(f"SPO's tracker counts rewards in [0, 1], not {reward}: it is a Beta distribution")
        weight = 1.0 / (1.0 - self.discount)
        start = self.value(prompt)
        good, bad = self.counts.get(prompt, (start * weight, (1 - start) * weight))
        self.counts[prompt] = (self.discount * good + reward, self.discount * bad + 1.0 - reward)
        self.total = (self.total[0] + reward, self.total[1] + 1)

    def save(self, path: Path) -> None:
        """Atomically."""
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(json.dumps({"discount": self.discount, "counts": self.counts, "total": self.total}))
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> "BetaTracker":
        """Raises ValueError for a file of another form, FileNotFoundError."""
        try:
            values = json.loads(path.read_text(), parse_constant=_refuse)
            counts = {str(key): (float(good), float(bad)) for key, (good, bad) in values["counts"].items()}
            found = cls(float(values["discount"]), counts, (float(values["total"][0]), int(values["total"][1])))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
            raise ValueError(f"{path} is not SPO's tracker: {error}") from error
        numbers = [*found.total, *(number for pair in counts.values() for number in pair)]
        if not (0 < found.discount < 1 and all(math.isfinite(number) and number >= 0 for number in numbers)):
            raise ValueError(f"{path} is not SPO's tracker: counts are finite and not negative, the discount in (0, 1)")
        return found


def _refuse(constant: str):
    raise ValueError(f"{constant} is no count")


@dataclass
class Visit:
    """A batch: the tracker's value of each row, and which rows have no judgement; the rewards are left behind."""

    value_B: Tensor
    failed_B: Tensor
    reward_B: Tensor | None = None


visiting: Handover[Visit] = Handover(NAME)


@register_adv_est(NAME)
def spo_advantage(
    token_level_rewards: Tensor, response_mask: Tensor, config=None, index=None, **kwargs
) -> tuple[Tensor, Tensor]:
    """(r - v) over its standard deviation in the batch, mean removed, on every response token; (B, L) twice."""
    visit = visiting.take()
    mask_BL = response_mask.to(torch.float32)
    visit.reward_B = token_level_rewards.float().sum(dim=1)  # the verifier's stands on the last token, whoever wrote it
    counts = ~visit.failed_B
    advantage_B = visit.reward_B - visit.value_B.to(visit.reward_B)
    if counts.sum() > 1:
        advantage_B = (advantage_B - advantage_B[counts].mean()) / (advantage_B[counts].std() + 1e-8)
    advantage_B = torch.where(counts, advantage_B, 0.0)
    return advantage_B.unsqueeze(1) * mask_BL, visit.reward_B.unsqueeze(1) * mask_BL


def prompt_ids(batch) -> list[str]:
    """A digest of each row's prompt tokens: the same in every epoch and after a resume."""
    prompts = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["prompts"])["prompts"]
    return [hashlib.blake2b(row.cpu().numpy().tobytes(), digest_size=12).hexdigest() for row in prompts.unbind()]


class SpoMixin(VerdictMixin):
    """Keeps the tracker, beside the actor's checkpoint too."""

    tracker = BetaTracker()

    def _compute_advantage(self, batch, metrics):
        prompts = prompt_ids(batch)
        unseen_B = torch.tensor([prompt not in self.tracker.counts for prompt in prompts])
        padding_B = index_rows(batch.keys, batch.tags).padding_B
        visit = Visit(torch.tensor([self.tracker.value(prompt) for prompt in prompts]), failed_rows(batch) | padding_B)
        with visiting(visit):
            batch = super()._compute_advantage(batch, metrics)
        assert visit.reward_B is not None
        counts = ~visit.failed_B
        for prompt, reward, counted in zip(prompts, visit.reward_B.tolist(), counts.tolist(), strict=True):
            if counted:
                self.tracker.update(prompt, reward)
        metrics["spo/unseen_share"] = unseen_B[counts].float().mean().item()
        correlation = pearson(visit.value_B[counts], visit.reward_B[counts])
        if correlation == correlation:  # in the first epoch all prompts are new and have one value
            metrics["spo/correlation"] = correlation
        return batch

    def _load_checkpoint(self):
        super()._load_checkpoint()
        self.tracker = BetaTracker()
        if self.global_steps:
            trainer = self.config.trainer
            folder = Path(trainer.default_local_dir) / f"global_step_{self.global_steps}"
            folder = Path(trainer.resume_from_path) if trainer.resume_mode == "resume_path" else folder
            self.tracker = BetaTracker.load(folder / FILE)

    def _save_checkpoint(self):
        folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
        folder.mkdir(parents=True, exist_ok=True)
        self.tracker.save(folder / FILE)  # before verl says that the checkpoint is there
        super()._save_checkpoint()
