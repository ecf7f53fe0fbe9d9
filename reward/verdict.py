"""What a verifier says of one response."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Verdict:
    """One response, judged.

    Attributes:
        score: reward in [0, 1].
        acc: 1.0 where the answer is right, else 0.0; what validation reports.
        failed: the verifier gave no judgement (time limit, crash, server down). That is no wrong answer: the row takes
            no part in the probe's fit and gets advantage zero.
        reason: a few words on why, for logs.
    """

    score: float
    acc: float
    failed: bool = False
    reason: str = ""


RIGHT, WRONG = Verdict(1.0, 1.0), Verdict(0.0, 0.0)


def failure(reason: str) -> Verdict:
    """No judgement, and why."""
    return Verdict(0.0, 0.0, failed=True, reason=reason)


def kept_of(extra_info: Mapping[str, Any], name: str) -> Any:
    """A value of a row's extra_info, or of the source's columns that `recipe.poise.data` kept there, or None."""
    if name in extra_info:
        return extra_info[name]
    try:
        kept = json.loads(extra_info.get("metadata", ""))
    except (TypeError, ValueError):  # someone else's metadata
        return None
    if not isinstance(kept, dict):
        return None
    inner = kept.get("extra_info")
    return {**(inner if isinstance(inner, dict) else {}), **kept}.get(name)


def plain(value: Any) -> Any:
    """A row's value as JSON has it: parquet readers give arrays for lists, and their own kinds of numbers."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


class Verifier(Protocol):
    """Judges responses of some data sources. Called from several threads' event loops; must not block them."""

    async def verify(self, response: str, ground_truth: Any, extra_info: Mapping[str, Any]) -> Verdict:
        """Judge a decoded response (reasoning included).

        Never raises on what a model may write; raises ValueError on a ground truth that it cannot read.
        """
        ...
