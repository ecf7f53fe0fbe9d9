"""Which data sets are known: where they are, how their columns map to verl's, how their prompts are worded.

Hub ids, files and columns are as the data sets' own pages state them. Every entry can be made from local files too.
"""

from dataclasses import dataclass, field
from typing import Literal

from recipe.poise.data.names import check_name

AnswerForm = Literal["text", "hashes", "boxed"]
Kind = Literal["duplicates", "malformed", "overlong"]

# {problem} is replaced, not formatted: problems are full of braces.
TEMPLATES = {
    "plain": "{problem}",
    "boxed": "{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{}.",
    "hashes": '{problem} Let\'s think step by step and output the final answer after "####".',
    # The wording that DAPO-Math-17k's own prompts have.
    "dapo": (
        "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
        "$Answer (without quotes) where $Answer is the answer to the problem.\n\n{problem}\n\n"
        'Remember to put your answer on its own line after "Answer:".'
    ),
}


@dataclass(frozen=True)
class Entry:
    """One data set. Columns are dotted paths; of several alternatives the first that exists is taken."""

    name: str
    hub: str | None
    # Files of each split, as patterns below the source's folder.
    splits: dict[str, tuple[str, ...]]
    # What the reward is chosen by, and what validation metrics are called. None: the column of this name.
    data_source: str | None
    problem: tuple[str, ...]
    answer: tuple[str, ...]
    # text: the column is the answer; hashes: what follows the last ####; boxed: the last \boxed{} of a solution.
    answer_form: AnswerForm = "text"
    # None: the column holds whole messages, which are taken as they are.
    template: str | None = "boxed"
    # The template that whole messages already have, so that another one can replace it.
    worded_as: str | None = None
    ability: str | None = "math"
    # Columns that are kept, as JSON in extra_info.metadata.
    extra: tuple[str, ...] = ()
    # What is left out and counted. What is not named here is an error where it occurs.
    drop: frozenset[Kind] = frozenset()
    # Rows that the source is known to have; another number is worth a warning.
    expected: dict[str, int] = field(default_factory=dict)

    def __post_init__(self):
        check_name(self.name, "a data set's name (--as)")
        for split in self.splits:
            check_name(split, "a split's name (--split, --files)")


def _competition(name: str, hub: str, files: str, rows: int, problem=("problem", "question"), extra=()) -> Entry:
    """A suite of a few dozen problems, all of them for testing."""
    return Entry(name, hub, {"test": (files,)}, name, problem, ("answer",), extra=tuple(extra), expected={"test": rows})


_ENTRIES = (
    Entry(
        name="dapo-math-17k",
        hub="BytedTsinghua-SIA/DAPO-Math-17k",
        splits={"train": ("data/*.parquet",)},
        data_source=None,
        problem=("prompt",),
        answer=("reward_model.ground_truth",),
        template=None,
        worded_as="dapo",
        extra=("extra_info",),
        drop=frozenset({"duplicates"}),  # the published file holds every prompt about a hundred times
    ),
    Entry(
        name="gsm8k",
        hub="openai/gsm8k",
        splits={"train": ("main/train-*.parquet",), "test": ("main/test-*.parquet",)},
        data_source="openai/gsm8k",
        problem=("question",),
        answer=("answer",),
        answer_form="hashes",
        template="hashes",
        expected={"train": 7473, "test": 1319},
    ),
    Entry(
        name="math",
        hub="DigitalLearningGmbH/MATH-lighteval",
        splits={"train": ("data/train-*.parquet",), "test": ("data/test-*.parquet",)},
        data_source="DigitalLearningGmbH/MATH-lighteval",
        problem=("problem",),
        answer=("solution",),
        answer_form="boxed",
        extra=("level", "type"),
        drop=frozenset({"duplicates"}),
        expected={"train": 7500, "test": 5000},
    ),
    Entry(
        name="math500",
        hub="HuggingFaceH4/MATH-500",
        splits={"test": ("test.jsonl",)},
        data_source="HuggingFaceH4/MATH-500",
        problem=("problem",),
        answer=("answer",),
        extra=("unique_id", "subject", "level"),
        expected={"test": 500},
    ),
    _competition("aime24", "HuggingFaceH4/aime_2024", "data/train-*.parquet", 30, extra=("id", "url")),
    _competition("aime25", "MathArena/aime_2025", "data/train-*.parquet", 30, extra=("problem_idx",)),
    _competition("aime26", "MathArena/aime_2026", "data/train-*.parquet", 30, extra=("problem_idx",)),
    _competition("amc23", "math-ai/amc23", "test-*.parquet", 40, extra=("id", "url")),
    _competition("amc24", "rawsh/2024_AMC12", "amc12-2024.jsonl", 45, extra=("exam",)),
    _competition("hmmt25", "MathArena/hmmt_feb_2025", "data/train-*.parquet", 30, extra=("problem_idx",)),
    _competition("brumo25", "MathArena/brumo_2025", "data/train-*.parquet", 30, extra=("problem_idx",)),
    Entry(
        name="guru",
        hub="LLM360/guru-RL-92k",
        splits={"train": ("train/*.parquet",), "test": ("online_eval/*.parquet",)},
        data_source=None,
        problem=("prompt",),
        answer=("reward_model.ground_truth",),
        template=None,
        ability=None,
        extra=("extra_info",),
        drop=frozenset({"duplicates"}),
    ),
    Entry(
        name="jsonl",  # anything else; its columns come from the command line
        hub=None,
        splits={"train": ("*.parquet", "*.jsonl", "*.json")},
        data_source=None,
        problem=("prompt", "problem", "question"),
        answer=("answer", "ground_truth"),
    ),
)

CATALOGUE = {entry.name: entry for entry in _ENTRIES}
# The paper's evaluation.
MATH_SUITES = ("amc23", "amc24", "aime24", "aime25", "aime26", "hmmt25", "brumo25")
GROUPS = {"math-suites": MATH_SUITES}
