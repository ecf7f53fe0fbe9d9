"""Prompts that are too long for the model."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from recipe.poise.data.errors import DataError, first_line


def tokenizer_of(model: str | Path) -> Any:
    """A model's tokenizer, which has a chat template. No code that lies beside it is run.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer  # half a minute to import, and most calls set no limit

    try:
        # Said outright: by default transformers asks on the terminal whether to run a model's own code.
        loaded = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises plain Exception for a damaged file
        raise DataError(
            f"{model}: no tokenizer that can be read ({first_line(error)}). Name a model's folder, or a hub id"
        ) from error
    if not loaded.chat_template:
        raise DataError(
            f"the tokenizer {model} has no chat template; name the model's own tokenizer, or add a chat_template.jinja"
        )
    return loaded


def ids_of(tokenizer: Any, messages: list[dict[str, str]], **variables: Any) -> list[int]:
    """A prompt in the chat template (which transformers runs in a sandbox), as verl and vLLM see it.

    Args:
        variables: of the template, e.g. ``enable_thinking``.

    Raises:
        DataError: the template does not take the messages.
    """
    try:
        return tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False, **variables
        )
    except Exception as error:  # a template is a program of the model's author and may raise anything
        raise DataError(f"the model's chat template does not take this prompt ({first_line(error)})") from error


@dataclass(frozen=True)
class Limit:
    """At most so many tokens, counted with the model's own chat template (as verl and vLLM see the prompt)."""

    tokenizer: str
    tokens: int

    @cached_property
    def _loaded(self):
        return tokenizer_of(self.tokenizer)

    def length(self, messages: list[dict[str, str]]) -> int:
        """Number of tokens of a prompt. Raises DataError, see `tokenizer_of` and `ids_of`."""
        return len(ids_of(self._loaded, messages))


def limit_of(tokenizer: str | None, tokens: int | None) -> Limit | None:
    """Raises DataError where only one of the two is given."""
    if tokens is None and tokenizer is None:
        return None
    if tokens is None or tokenizer is None:
        raise DataError(
            "a limit on prompts takes both: --max-prompt-length N --tokenizer MODEL (its tokens are counted)"
        )
    if tokens < 1:
        raise DataError(f"--max-prompt-length {tokens}: want at least 1")
    return Limit(tokenizer, tokens)
