"""What an evaluation does; the defaults are the paper's protocol."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

DEFAULT_REWARD = "reward.router:compute_score"


DTYPES = ("auto", "bfloat16", "float16", "half", "float32", "float")  # vLLM's
LARGEST = 2**31 - 1


class EvaluationError(ValueError):
    """Something that a person can mend; the message says how."""


def check(option: str, value: Any, fits: bool, wanted: str) -> None:
    """Raise EvaluationError unless a value fits. Comparisons with NaN are false, so write `fits` as what is wanted."""
    if not fits:
        raise EvaluationError(f"{'-' if len(option) == 1 else '--'}{option} {value}: want {wanted}")


def check_amounts(k: int, max_model_len: int | None) -> None:
    """Raise EvaluationError for numbers of samples, or of tokens in a context, that cannot be."""
    check("k", k, 1 <= k <= 2**16, f"1 to {2**16} samples of each problem")
    if max_model_len is not None:
        check("max-model-len", max_model_len, 1 <= max_model_len <= LARGEST, "at least 1 token")


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
        check("temperature", self.temperature, 0 <= self.temperature <= 2, "0 (greedy) to 2, as vLLM does")
        check("top-p", self.top_p, 0 < self.top_p <= 1, "above 0, at most 1 (1: off)")
        check("top-k", self.top_k, self.top_k == -1 or 1 <= self.top_k <= LARGEST, "at least 1, or -1 (off)")
        check("max-tokens", self.max_tokens, 1 <= self.max_tokens <= LARGEST, "at least 1 token")
        check("seed", self.seed, 0 <= self.seed < 2**32, f"0 to {2**32 - 1}")
        check("chat-template", self.chat_template, isinstance(self.chat_template, dict), "a JSON object {...}")
        try:
            json.dumps(self.chat_template, ensure_ascii=False, allow_nan=False).encode()
        except ValueError as error:  # NaN, or half of a character
            raise EvaluationError(f"--chat-template holds what no JSON file can hold: {error}") from error

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
        check("data-parallel", self.data_parallel, self.data_parallel >= 0, "at least 1 engine, or 0 (all devices)")
        check("tensor-parallel", self.tensor_parallel, self.tensor_parallel >= 1, "at least 1 device")
        check("max-num-seqs", self.max_num_seqs, 1 <= self.max_num_seqs <= LARGEST, "at least 1 response at a time")
        share = self.gpu_memory_utilization
        check("gpu-memory-utilization", share, 0 < share <= 1, "a share of the memory: above 0, at most 1")
        check("dtype", self.dtype, self.dtype in DTYPES, f"one of {', '.join(DTYPES)}")


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lines "name: old -> new" of the settings that are not equal."""
    names = sorted(set(old) | set(new))
    return [f"{name}: {old.get(name)!r} -> {new.get(name)!r}" for name in names if old.get(name) != new.get(name)]
