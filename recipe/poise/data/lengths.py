"""Prompts that are too long for the model."""

from dataclasses import dataclass
from functools import cached_property

from recipe.poise.data.errors import DataError


@dataclass(frozen=True)
class Limit:
    """At most so many tokens, counted with the model's own chat template (as verl and vLLM see the prompt)."""

    tokenizer: str
    tokens: int

    @cached_property
    def _loaded(self):
        from transformers import AutoTokenizer  # half a minute to import, and most calls set no limit

        loaded = AutoTokenizer.from_pretrained(self.tokenizer)
        if not loaded.chat_template:
            raise DataError(f"the tokenizer {self.tokenizer} has no chat template; name the model's own tokenizer")
        return loaded

    def length(self, messages: list[dict[str, str]]) -> int:
        """Number of tokens of a prompt."""
        ids = self._loaded.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        return len(ids)


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
