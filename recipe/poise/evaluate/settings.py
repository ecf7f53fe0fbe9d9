"""What an evaluation does; the defaults are the paper's protocol."""

from dataclasses import asdict, dataclass, field
from typing import Any

DEFAULT_REWARD = "reward.router:compute_score"


class EvaluationError(ValueError):
    """Something that a person can mend; the message says how."""


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn. All of it is part of what a stored sample is."""

    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = -1  # -1: off
    # The published set-up's response length. A response that reaches it counts as truncated.
    max_tokens: int = 8192
    # Sample i of problem p has its own seed, made from this one: the order of requests does not matter.
    seed: int = 0
    # For the model's chat template, e.g. {"enable_thinking": False}.
    chat_template: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if not 0 <= self.temperature:
            raise EvaluationError(f"temperature {self.temperature}: want 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise EvaluationError(f"top-p {self.top_p}: want above 0, at most 1")
        if self.max_tokens < 1:
            raise EvaluationError(f"max-tokens {self.max_tokens}: want at least 1")

    record = asdict


@dataclass(frozen=True)
class Engine:
    """How vLLM runs; it changes speed, not the distribution of the samples."""

    data_parallel: int = 0  # processes with an engine each; 0: as many as the devices allow
    tensor_parallel: int = 1  # devices of one engine
    max_num_seqs: int = 256  # responses that one engine writes at a time
    gpu_memory_utilization: float = 0.9
    enforce_eager: bool = False
    dtype: str = "auto"

    def __post_init__(self):
        if self.data_parallel < 0 or self.tensor_parallel < 1 or self.max_num_seqs < 1:
            raise EvaluationError("data-parallel, tensor-parallel and max-num-seqs must be positive")


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lines "name: old -> new" of the settings that are not equal."""
    names = sorted(set(old) | set(new))
    return [f"{name}: {old.get(name)!r} -> {new.get(name)!r}" for name in names if old.get(name) != new.get(name)]
