"""Prompts as token ids, and how long prompt and response may be together."""

import inspect
import warnings
from pathlib import Path
from typing import Any

from recipe.poise.data.errors import DataError, first_line
from recipe.poise.data.lengths import ids_of, tokenizer_of
from recipe.poise.evaluate.settings import EvaluationError
from recipe.poise.evaluate.suites import Suite

Prompts = dict[tuple[str, int], list[int]]  # (suite, problem) -> ids
# Arguments of `apply_chat_template` that reach the template; its others say what the call returns, which is not asked.
VARIABLES = {"tools", "documents", "chat_template", "kwargs"}


def render(model: Path, suites: list[Suite], template_arguments: dict[str, Any]) -> Prompts:
    """Every problem in the model's chat template.

    Raises:
        DataError: the model has no tokenizer or no chat template.
        EvaluationError: a problem that the template does not take, or variables that are not the template's.
    """
    tokenizer = tokenizer_of(model)
    ours = set(inspect.signature(tokenizer.apply_chat_template).parameters) - VARIABLES
    if taken := sorted(ours & set(template_arguments)):
        raise EvaluationError(f"--chat-template: {', '.join(taken)} is no variable of a chat template; leave it out")
    prompts: Prompts = {}
    for suite in suites:
        for problem, row in enumerate(suite.rows):
            try:
                prompts[suite.name, problem] = ids_of(tokenizer, row["prompt"], **template_arguments)
            except DataError as error:
                raise EvaluationError(f"problem {problem} of {suite.name}: {error}") from error
    return prompts


def context_of(model: Path) -> int:
    """Tokens that the model can hold, by its configuration and its tokenizer's.

    Raises:
        EvaluationError: the configuration cannot be read, or does not say.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False).get_text_config()
        return min(config.max_position_embeddings, tokenizer_of(model).model_max_length)
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        raise EvaluationError(
            f"{model / 'config.json'} does not say how many tokens the model holds ({first_line(error)}); mend it, or "
            "give --max-model-len"
        ) from error


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
