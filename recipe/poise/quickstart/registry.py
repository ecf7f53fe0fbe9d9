"""The embedded tasks by name: what differs between them, so that everything else is written once."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from recipe.poise.quickstart import behaviours, tasks, uneven, uneven_behaviours, wide
from recipe.poise.quickstart.behaviours import Behaviour
from recipe.poise.quickstart.tasks import Part, Problem, Source


@dataclass(frozen=True)
class Task:
    """An embedded task. `launch/quickstart.sh --task NAME` trains on it with the config ``poise_NAME``."""

    name: str
    levels: Sequence[Source]
    """Of the warm start, and of training and validation unless `asked` says otherwise."""
    careful: Behaviour
    first_lesson: Behaviour
    """What the warm start shows first, alone: the careful way."""
    careful_opening: Callable[[Problem], str]
    shares: Callable[[Problem], dict[Behaviour, float]]
    """Of each behaviour in the demonstrations of a problem."""
    recorded_shares: dict[str, Any]
    """The same as plain data, for the record of a model."""
    words: str
    """What responses say beside numbers."""
    numbers: Sequence[int]
    max_response: int
    """Tokens; demonstrations are cut there, as rollouts are."""
    steps: int
    """Of the warm start."""
    batch: int
    careful_share: float
    """First share of the steps that shows careful demonstrations only."""
    micro_batches: int
    """Parts of a batch, by length, so that short demonstrations are not padded to the longest."""
    val_prompts: int
    train_prompts: int = 2560
    asked: Sequence[Source] | None = None
    """Of training and validation, where they are not the warm start's."""
    model_of: str | None = None
    """The task whose packaged model this one starts from, where it has none of its own."""

    @property
    def packaged_as(self) -> str:
        """The task whose packaged model it is."""
        return self.model_of or self.name

    def recorded_levels(self) -> list[dict[str, Any]]:
        return [asdict(level) for level in self.levels]  # type: ignore[call-overload]

    def recorded_asked(self) -> dict[str, Any]:
        """What training and validation ask, where that is of their own."""
        return {"asked": [asdict(level) for level in self.asked]} if self.asked else {}  # type: ignore[call-overload]

    def distinct_problems(self, part: Part, count: int, seed: int) -> list[Problem]:
        """`count` problems of one part with different questions."""
        return tasks.distinct_problems(part, count, seed, self.levels if part == "warm" else self.asked or self.levels)

    def validation_problems(self, count: int, seed: int) -> list[Problem]:
        """Held-out problems, as many of each family."""
        return tasks.balanced_problems("val", count, seed, self.asked or self.levels)


QUICKSTART = Task(
    name="quickstart",
    levels=tasks.LEVELS,
    careful=behaviours.careful,
    first_lesson=behaviours.careful,
    careful_opening=behaviours.careful_opening,
    shares=lambda problem: behaviours.SHARES,
    recorded_shares={behaviour.__name__: share for behaviour, share in behaviours.SHARES.items()},
    words=behaviours.WORDS,
    numbers=tasks.numbers(),
    max_response=64,
    steps=700,
    batch=64,
    careful_share=0.5,
    micro_batches=1,
    val_prompts=128,
)
UNEVEN = Task(
    name="uneven",
    levels=uneven.LEVELS,
    careful=uneven_behaviours.careful,
    first_lesson=uneven_behaviours.plain,
    careful_opening=uneven_behaviours.careful_opening,
    shares=uneven_behaviours.shares,
    recorded_shares={
        "middle": uneven.MIDDLE,
        "slope": uneven.SLOPE,
        **{
            family: {behaviour.__name__: share for behaviour, share in failures.items()}
            for family, failures in uneven_behaviours.FAILURES.items()
        },
    },
    words=uneven_behaviours.WORDS,
    numbers=uneven.numbers(),
    max_response=192,
    steps=1000,
    batch=16,
    careful_share=0.5,
    micro_batches=4,
    val_prompts=192,
)
WIDE = replace(QUICKSTART, name="wide", asked=wide.ASKED, model_of=QUICKSTART.name)
TASKS = {task.name: task for task in (QUICKSTART, UNEVEN, WIDE)}
