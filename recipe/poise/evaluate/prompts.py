"""Prompts as token ids, and how long prompt and response may be together."""

import warnings
from pathlib import Path
from typing import Any

from recipe.poise.evaluate.settings import EvaluationError
from recipe.poise.evaluate.suites import Suite

Prompts = dict[tuple[str, int], list[int]]  # (suite, problem) -> ids


def render(model: Path, suites: list[Suite], template_arguments: dict[str, Any]) -> Prompts:
    """Every problem in the model's chat template.

    Raises:
        EvaluationError: the model has no chat template.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    if not tokenizer.chat_template:
        raise EvaluationError(f"{model} has no chat template; add a chat_template.jinja to the folder")
    return {
        (suite.name, problem): tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, tokenize=True, return_dict=False, **template_arguments
        )
        for suite in suites
        for problem, row in enumerate(suite.rows)
    }


def context_of(model: Path) -> int:
    """Tokens that the model can hold, by its configuration and its tokenizer's."""
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(model).get_text_config()
    return min(config.max_position_embeddings, AutoTokenizer.from_pretrained(model).model_max_length)


def model_length(prompts: Prompts, max_tokens: int, context: int) -> int:
    """Tokens that an engine must hold: the longest prompt and a whole response, as far as the model's context goes.

    Raises:
        EvaluationError: a prompt that leaves no room for a response.
    """
    place, longest = max(prompts.items(), key=lambda item: len(item[1]))
    if len(longest) >= context:
        raise EvaluationError(
            f"problem {place[1]} of {place[0]} has {len(longest)} tokens, the model's context is {context}. "
            "Leave such problems out (recipe.poise.data --max-prompt-length), or give --max-model-len"
        )
    wanted = len(longest) + max_tokens
    if wanted > context:
        warnings.warn(
            f"a response of {max_tokens} tokens does not fit the model's context of {context} after a prompt of "
            f"{len(longest)}; responses that reach the end of the context count as truncated",
            stacklevel=2,
        )
    return min(wanted, context)
