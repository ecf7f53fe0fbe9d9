"""The project's probe, one bank per seed, in processes of their own: a step of a small bank is work for one core.

Shapes: S seeds, B rollouts of an update, F features.
"""

import multiprocessing
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from probe import Crossing, FeatureLayout, Prediction, ProbeBank, ProbeSettings
from recipe.poise.baseline.advantage import compute_advantages
from recipe.poise.capture.energy import DEFAULT_FORM
from recipe.poise.capture.signals import DEFAULT_SIGNALS


@dataclass(frozen=True)
class BankSettings:
    """hidden: size of a state. n: rollouts of a prompt; with one, the probe reads the prompt's state alone."""

    hidden: int
    n: int
    guard: str
    min_rows: int = 32  # recipe/poise/config/quickstart_base.yaml


class SeedBank:
    """A bank as a run of `recipe.poise.compare` has it, and its updates so far."""

    def __init__(self, settings: BankSettings, seed: int):
        states, signals = (("prompt",), ()) if settings.n == 1 else (("prompt", "response"), DEFAULT_SIGNALS)
        sizes = (*(settings.hidden for _ in states), *(1 for _ in signals))
        form = {"coherence": DEFAULT_FORM.coherence, "surprise": DEFAULT_FORM.surprise}
        self.settings, self.updates = settings, 0
        self.bank = ProbeBank(
            ProbeSettings(min_rows=settings.min_rows, guard=settings.guard),  # type: ignore[arg-type]
            FeatureLayout((*states, *signals), sizes),
            seed=seed,
            self_target=settings.n == 1,
            crossing=Crossing("energy", None, "fresh", ("prompt",), **form),
        )

    def step(self, x_BF: Tensor, reward_B: Tensor, energy_B: Tensor) -> tuple[Tensor, float]:
        """Advantages (B,); and their energy-weighted square over that of the constant's, which leads the ratio of the
        gradients' variances."""
        group_B = torch.arange(len(reward_B)) // self.settings.n
        said = self.bank.cross_fit(x_BF, reward_B, group_B, weight_R=energy_B)
        constant_B3 = torch.tensor([0.0, 0.0, 1.0]).expand(len(reward_B), 3)
        squares = []
        for weight_B3 in (constant_B3, said.weight_R3):
            advantage_B = self._advantages(said, weight_B3, reward_B, group_B)
            squares.append(float((energy_B * advantage_B.square()).sum()))
        self.bank.update(x_BF, reward_B, group_B, step=self.updates, weight_R=energy_B, said=said)
        self.updates += 1
        return advantage_B, squares[1] / squares[0] if squares[0] > 0 else 1.0

    def _advantages(self, said: Prediction, weight_B3: Tensor, reward_B: Tensor, group_B: Tensor) -> Tensor:
        numbers = (reward_B, group_B, said.value_R, weight_B3, said.constant_R)
        own_value = self.settings.n == 1
        return compute_advantages(*numbers, own_value=own_value, row_weight_B=said.row_weight_R).advantage_B


def _serve(pipe, settings: BankSettings, seeds: list[int]) -> None:
    torch.set_num_threads(1)
    banks = [SeedBank(settings, seed) for seed in seeds]
    while (rows := pipe.recv()) is not None:
        columns = [torch.from_numpy(column) for column in rows]
        parts = [bank.step(*row) for bank, *row in zip(banks, *columns, strict=True)]
        pipe.send((torch.stack([advantage_B for advantage_B, _ in parts]).numpy(), [ratio for _, ratio in parts]))


class Banks:
    """One bank per seed, spread over processes; a context manager."""

    def __init__(self, settings: BankSettings, seeds: list[int]):
        count = min(len(seeds), os.cpu_count() or 1)
        self.sizes = [len(seeds[start::count]) for start in range(count)]
        self.pipes, self.processes = [], []
        context, left = multiprocessing.get_context("spawn"), list(seeds)
        for size in self.sizes:
            own, left = left[:size], left[size:]
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, settings, own), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def __enter__(self) -> "Banks":
        return self

    def __exit__(self, *error) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            if error[0] is None:
                pipe.send(None)
            else:
                process.terminate()
            process.join()

    def step(self, x_SBF: Tensor, reward_SB: Tensor, energy_SB: Tensor) -> tuple[Tensor, Tensor]:
        """(S, B) advantages and (S,) ratios, as `SeedBank.step` gives them."""
        columns = [column.float().cpu() for column in (x_SBF, reward_SB, energy_SB)]
        for pipe, *rows in zip(self.pipes, *(column.split(self.sizes) for column in columns), strict=True):
            pipe.send([part.numpy() for part in rows])
        answers = [pipe.recv() for pipe in self.pipes]
        advantage_SB = torch.cat([torch.from_numpy(advantage) for advantage, _ in answers])
        return advantage_SB, torch.tensor([ratio for _, ratios in answers for ratio in ratios])
