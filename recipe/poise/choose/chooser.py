"""Who is asked next: the pool of candidates, the order they were put in, and what came of what was expected.

Shapes: C candidates, B rows of a batch.
"""

from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from probe import state
from probe.metrics import pearson
from recipe.poise.choose.budget import allocate, openness
from recipe.poise.choose.pool import CandidatePool
from recipe.poise.choose.rule import Judgement, ordered, scores
from recipe.poise.choose.settings import SelectSettings

FOLDER = "select"  # of a checkpoint
REMEMBERED = 65_536  # prompts whose expectation is kept until it can be compared
MOST = 4  # times the usual number of rollouts is all that one prompt may get
NAN = float("nan")


class Chooser:
    """In each step: `candidates`, then `choose` with what the probe says of them, then `take` as many as are asked;
    `note` and `observe` compare.

    Args:
        size: prompts in the data set. batch: prompts of a step. shuffle: as in `CandidatePool`.
        rollouts: of a prompt on average, where they are to be given by openness; None: all prompts get as many.

    Raises:
        ValueError: fewer prompts than a step asks.
    """

    def __init__(
        self, settings: SelectSettings, size: int, batch: int, shuffle: bool = True, rollouts: int | None = None
    ):
        if size < batch:
            raise ValueError(f"the training data have {size} prompts, a step asks data.train_batch_size={batch}")
        self.settings, self.size, self.batch, self.shuffle, self.rollouts = settings, size, batch, shuffle, rollouts
        self.pool = CandidatePool(size, settings.seed, shuffle, settings.max_age, settings.repeat)
        self._queue: list[int] = []  # places, the next one last
        self._rate: dict[int, float] = {}  # of the candidates that were judged last
        self._given: dict[int, int] = {}  # rollouts of the chosen ones
        self._left: OrderedDict[int, float] = OrderedDict()  # what was expected of prompts that were not chosen
        self._asked: OrderedDict[str, tuple[int, float]] = OrderedDict()  # uid -> place and expectation

    def candidates(self) -> list[int]:
        """Places of the next step's candidates, C of them: a multiple of the batch, or the whole data set."""
        return [item.place for item in self.pool.refresh(self.settings.candidates * self.batch)]

    def choose(self, said: Judgement, step: int) -> dict[str, float]:
        """Put the candidates in order; what that rests on, as metrics.

        The same seed, step and judgement give the same order, whatever happened before.
        """
        places = [item.place for item in self.pool.candidates]
        noise = torch.Generator().manual_seed((self.settings.seed * 1_000_003 + step) % 2**63)
        score_C = scores(self.settings.rule, said, noise)
        order_C = ordered(score_C, self.settings.power, self.settings.random_share, noise)
        self._queue = [places[row] for row in order_C.tolist()][::-1]
        self._rate = dict(zip(places, said.rate_C.tolist(), strict=True))
        chosen, left = order_C[: self.batch], order_C[self.batch :]
        for row in left.tolist():
            _remember(self._left, places[row], self._rate[places[row]])
        metrics = {
            "select_candidates": float(len(places)),
            "select_epoch": self.pool.epoch + self.pool.cursor / self.size,
            "select_known": said.known,
            "select_spread": _mean(said.spread_C),
            "select_expected": _mean(said.rate_C[chosen]),
            "select_expected_left": _mean(said.rate_C[left]),
        }
        if self.rollouts is not None:
            given = allocate(openness(said.at(chosen)), self.batch * self.rollouts, MOST * self.rollouts)
            self._given = {places[row]: count for row, count in zip(chosen.tolist(), given.tolist(), strict=True)}
            metrics["select_single_share"] = (given == 1).double().mean().item()
            metrics["select_rollouts_spread"] = given.double().std(correction=0).item()
        return {name: value for name, value in metrics.items() if value == value}

    def given(self, places: list[int]) -> list[int] | None:
        """Rollouts of each of these prompts; None where all get as many."""
        return None if self.rollouts is None else [self._given.get(place, self.rollouts) for place in places]

    def take(self, count: int) -> list[int]:
        """Places of the next prompts to be asked. More than were put in order: drawn by chance, unjudged."""
        found: list[int] = []
        while len(found) < count:
            place = self._queue.pop() if self._queue else self.pool.draw().place
            self.pool.take(place)
            found.append(place)
        return found

    def note(self, uids: list[str], places: list[int]) -> None:
        """The names under which the prompts at these places are asked."""
        for uid, place in zip(uids, places, strict=True):
            _remember(self._asked, uid, (place, self._rate.get(place, NAN)))

    def observe(self, uids: list[str], reward_B: Tensor) -> dict[str, float]:
        """Compare a batch's rewards with what was expected of its prompts.

        Args:
            uids: of each row. reward_B: NaN for rows without a judgement and for padding.
        """
        rewards: dict[str, list[float]] = {}
        for uid, reward in zip(uids, reward_B.tolist(), strict=True):
            if reward == reward:
                rewards.setdefault(uid, []).append(reward)
        groups = [group for group in rewards.values() if len(group) > 1]
        known = [(uid, group) for uid, group in rewards.items() if uid in self._asked]
        seen = [(*self._asked.pop(uid), sum(group) / len(group)) for uid, group in known]
        earlier = [(self._left.pop(place), observed) for place, _, observed in seen if place in self._left]
        expected_G, observed_G = (torch.tensor([row[index] for row in seen]) for index in (1, 2))
        judged_G = expected_G.isfinite()
        metrics = {
            "select_observed": _mean(observed_G),
            "select_equal_share": _mean(torch.tensor([float(min(group) == max(group)) for group in groups])),
            "select_correlation": pearson(expected_G[judged_G], observed_G[judged_G]) if judged_G.sum() > 1 else NAN,
            "select_error": _mean((expected_G - observed_G).abs()),
            "select_left_expected": _mean(torch.tensor([row[0] for row in earlier])),
            "select_left_observed": _mean(torch.tensor([row[1] for row in earlier])),
        }
        return {name: value for name, value in metrics.items() if value == value}

    def _identity(self) -> dict:
        sizes = {"prompts": self.size, "batch": self.batch, "shuffle": self.shuffle, "rollouts": self.rollouts}
        return {"settings": asdict(self.settings)} | sizes

    def save(self, checkpoint: str | Path) -> None:
        """Write what was drawn, chosen and left to `checkpoint`, atomically; see `probe.state`."""
        columns, counters = self.pool.state()
        places, rates = torch.tensor(list(self._left), dtype=torch.int64), torch.tensor(list(self._left.values()))
        left = {"place": places, "rate": rates.float()}
        tensors = state.prefixed("pool", columns) | state.prefixed("left", left)
        state.write(Path(checkpoint) / FOLDER, self._identity(), counters, tensors)

    def load(self, checkpoint: str | Path) -> None:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no state there. ValueError: other data, batch or settings, or damaged; says what to do.
        """
        folder = Path(checkpoint) / FOLDER
        identity, counters, tensors = state.read(folder)
        state.check_identity(folder, self._identity(), identity)
        try:
            columns, left = state.split(tensors, ("pool", "left"))
            declared = {"place": ("N", torch.int64), "rate": ("N", torch.float32)}
            state.check_tensors("left", left, declared, {}, holes=("rate",))
            self.pool.load_state(columns, counters)
            self._left = OrderedDict(zip(left["place"].tolist(), left["rate"].tolist(), strict=True))
        except (ValueError, KeyError) as error:
            raise state.damaged(folder, error) from error


def _mean(x_N: Tensor) -> float:
    """Mean of the finite numbers; NaN where there is none."""
    return x_N[x_N.isfinite()].double().mean().item()


def _remember(memory: OrderedDict, key, value) -> None:
    memory[key] = value
    memory.move_to_end(key)
    while len(memory) > REMEMBERED:
        memory.popitem(last=False)
