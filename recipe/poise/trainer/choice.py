"""Choosing prompts in verl's trainers: between the update and the weight sync, while the actor's weights are on the
device, the candidates of the next step go through the actor's engine, prompts alone.

verl fetches prompts from a data loader; where prompts are chosen, it finds ours in its place. With
``poise.select.candidates=1 poise.rollouts=fixed`` nothing here does anything.
"""

import logging
import time
from pathlib import Path

import numpy as np
import torch
import transfer_queue as tq
from verl.utils.dataset.rl_dataset import collate_fn
from verl.utils.debug import marked_timer

from recipe.poise.baseline.rows import index_rows
from recipe.poise.choose.chooser import FOLDER, Chooser
from recipe.poise.choose.prompts import PromptTokens
from recipe.poise.choose.rule import Judgement
from recipe.poise.config import PoiseConfig
from recipe.poise.trainer.prompt_pass import PromptPassMixin
from recipe.poise.trainer.verdicts import failed_rows

logger = logging.getLogger(__name__)

ROLLOUTS_FIELD = "__rollout_n__"  # verl's: rollouts of this prompt


class ChosenPrompts:
    """In the place of verl's data loader: each fetch is of the prompts that are next in the chooser's order.

    Its state is the chooser's, which is saved beside it (verl's file is a pickle).
    """

    def __init__(self, chooser: Chooser, dataset, fetch: int):
        self._chooser, self._dataset, self._fetch = chooser, dataset, fetch
        self.places: list[int] = []  # of the last fetch

    def __iter__(self) -> "ChosenPrompts":
        return self

    def __next__(self) -> dict:
        self.places = self._chooser.take(self._fetch)
        batch = collate_fn([self._dataset[place] for place in self.places])
        given = self._chooser.given(self.places)
        if given is not None:  # verl's agent loop looks for it
            batch[ROLLOUTS_FIELD] = np.array(given, dtype=object)
        return batch

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        """What a run that did not choose has left is of no use here."""


class ChoiceMixin(PromptPassMixin):
    """Judges candidates and chooses among them, where ``poise.select`` says so.

    It stands behind the mix-in that saves a checkpoint on request (`trainer.stop`): what is saved at the end of a step
    is of before the choice for the next one, which a resumed run makes again with the same weights.
    """

    poise: PoiseConfig
    _chooser: Chooser | None = None
    _choice_metrics: dict[str, float] = {}

    def _init_dataloader(self):
        super()._init_dataloader()
        if not self.poise.choosing:
            return
        data = self.config.data
        sizes = (len(self.train_dataset), data.train_batch_size, bool(data.shuffle))
        n = self.config.actor_rollout_ref.rollout.n if self.poise.rollouts == "adaptive" else None
        self._chooser = Chooser(self.poise.select, *sizes, n)
        self._prompt_tokens = PromptTokens(self.config, self.train_dataset)
        fetch = data.get("gen_batch_size", None) or data.train_batch_size
        self.train_dataloader = ChosenPrompts(self._chooser, self.train_dataset, fetch)

    def on_init_end(self):
        if self._chooser is not None:
            self._choose()
        super().on_init_end()

    def on_step_end(self):
        if self._chooser is not None and self.global_steps < self.total_training_steps:
            with marked_timer("prompt_pass", self.timing_raw, color="brown"):
                self._choose()
        super().on_step_end()

    def _choose(self) -> None:
        """Judge the next step's candidates, and put them in order."""
        assert self._chooser is not None
        start = time.perf_counter()
        found = [self._prompt_tokens.of(place) for place in self._chooser.candidates()]
        tokens = [row for row, _ in found]
        domain_C = torch.tensor([self.poise.probe.domain_index(source) for _, source in found])
        self._pass_prompts(tokens)
        said_C5 = next(table for table in self.critic_wg.judge_prompts(domain_C) if table is not None)
        metrics = self._chooser.choose(Judgement.of_table(said_C5), self.global_steps + 1)
        metrics["prompt_pass_tokens"] = float(sum(map(len, tokens)))
        metrics["time_prompt_pass_s"] = time.perf_counter() - start
        self._choice_metrics = {f"poise/{name}": value for name, value in metrics.items()}

    def prepare_step(self) -> dict:
        return {**super().prepare_step(), **self._choice_metrics}

    def _fetch_one_gen_batch(self):
        batch = super()._fetch_one_gen_batch()
        if self._chooser is not None:
            self._chooser.note(list(batch["uid"]), self.train_dataloader.places)
        return batch

    def _compute_advantage(self, batch, metrics):
        batch = super()._compute_advantage(batch, metrics)
        if self._chooser is not None:
            rows = index_rows(batch.keys, batch.tags)
            data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["rm_scores"])
            reward_B = torch.stack([row.float().sum() for row in data["rm_scores"].unbind()])
            reward_B[failed_rows(batch) | (rows.id_B < 0)] = float("nan")
            observed = self._chooser.observe([key.rsplit("_", 2)[0] for key in batch.keys], reward_B)
            metrics |= {f"poise/{name}": value for name, value in observed.items()}
        return batch

    def _load_checkpoint(self):
        super()._load_checkpoint()
        if self._chooser is None or not self.global_steps:
            return
        trainer = self.config.trainer
        folder = Path(trainer.default_local_dir) / f"global_step_{self.global_steps}"
        folder = Path(trainer.resume_from_path) if trainer.resume_mode == "resume_path" else folder
        if (folder / FOLDER).is_dir():
            self._chooser.load(folder)
        else:
            logger.warning("%s is of a run that did not choose prompts: choosing starts with the first epoch", folder)

    def _save_checkpoint(self):
        if self._chooser is not None:  # before verl says that the checkpoint is there
            self._chooser.save(Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}")
        super()._save_checkpoint()
