"""Prompts as the rollout will see them, and as a batch for the actor's engine.

Shapes: C candidates, R rows of the batch (candidates and padding), T their tokens.
"""

from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Any

import torch
from tensordict import TensorDict
from torch.utils.data import Dataset
from verl.tools.tool_registry import load_all_tools
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.import_utils import resolve_config_path
from verl.utils.seqlen_balancing import calculate_workload, get_seqlen_balanced_partitions
from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

from recipe.poise.capture.engine import PROMPT_FIELD, PROMPT_FLAG

TOOL_AGENT = "tool_agent"
REMEMBERED = 65_536  # prompts whose tokens are kept


class PromptTokens:
    """Token ids of a data set's prompts, by place: verl's own builder, template and truncation, up to the first turn.

    Args:
        config: the run's. dataset: verl's `RLHFDataset`, or one of its kind.
    """

    def __init__(self, config, dataset: Dataset):
        model, rollout = omega_conf_to_dataclass(config.actor_rollout_ref.model), config.actor_rollout_ref.rollout
        if model.get("custom_chat_template", None) is not None:
            model.tokenizer.chat_template = model.custom_chat_template
        self._builder = create_continuous_token_builder(
            model.tokenizer,
            hf_model_type=getattr(model.hf_config, "model_type", None),
            chat_template_kwargs=config.data.get("apply_chat_template_kwargs", {}),
            mm_processor_kwargs=config.data.get("mm_processor_kwargs", {}),
            processor=model.processor,
        )
        self._dataset, self._length = dataset, rollout.prompt_length
        self._agent = rollout.agent.default_agent_loop
        paths = {name: rollout.multi_turn.get(name) for name in ("tool_config_path", "function_tool_path")}
        self._tool_paths = {name: resolve_config_path(path) if path else None for name, path in paths.items()}
        self.of = lru_cache(maxsize=REMEMBERED)(self._of)

    def _of(self, place: int) -> tuple[torch.Tensor, str]:
        """Tokens (T,) int64 and data source of a prompt.

        Raises:
            ValueError: it has images, videos or sound.
        """
        row = self._dataset[place]
        for message in row["raw_prompt"]:
            parts = message["content"] if isinstance(message["content"], list) else []
            kinds = {part.get("type") for part in parts if isinstance(part, Mapping)} - {"text"}
            if kinds:
                raise ValueError(
                    f"prompt {place} of the training data has {', '.join(map(str, kinds))}: prompts are chosen by text "
                    "alone. Set poise.select.candidates=1."
                )
        tools = self._schemas(row) if row.get("agent_name", self._agent) == TOOL_AGENT else None
        tokens = self._builder.build_initial_tokens(list(row["raw_prompt"]), tools=tools)
        # an agent loop cuts a prompt that is too long on the left
        return torch.tensor(tokens[-self._length :], dtype=torch.int64), str(row.get("data_source", "unknown"))

    @cached_property
    def _tools(self) -> dict[str, Any]:
        return {tool.name: tool for tool in load_all_tools(**self._tool_paths)}

    def _schemas(self, row: dict[str, Any]) -> list[dict]:
        """The tools that verl's tool agent offers with this prompt."""
        tools = self._tools
        wanted = (row.get("extra_info") or {}).get("tool_selection")
        if wanted and tools:
            tools = {name: tools[name] for name in wanted if name in tools}
        return [tool.tool_schema.model_dump(exclude_unset=True, exclude_none=True) for tool in tools.values()]


def prompt_batch(tokens: list[torch.Tensor], ranks: int, multiple: int = 1) -> TensorDict:
    """The batch of a prompt pass: R rows, spread so that each rank has as much work, in ranks' order.

    Args:
        tokens: of each candidate, (T,). ranks: of data parallelism; multiple: rows of a rank are a multiple of it.
            Copies of the first prompt fill up, with negative ids.
    """
    padding = -len(tokens) % (ranks * multiple)
    ids_R = torch.cat([torch.arange(len(tokens)), -1 - torch.arange(padding)])
    rows = [*tokens, *([tokens[0]] * padding)]
    workload = calculate_workload(torch.tensor([len(row) for row in rows]))
    parts = get_seqlen_balanced_partitions(workload, k_partitions=ranks, equal_size=True)
    order = [row for part in parts for row in part]
    rows = [rows[row] for row in order]

    def jagged(parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.nested.as_nested_tensor(parts, layout=torch.jagged)

    return tu.get_tensordict(
        tensor_dict={
            "input_ids": jagged(rows),
            "position_ids": jagged([torch.arange(len(row)) for row in rows]),
            "loss_mask": jagged([torch.ones_like(row) for row in rows]),
            PROMPT_FIELD: ids_R[order].unsqueeze(1),
        },
        non_tensor_dict={PROMPT_FLAG: True, "compute_loss": False, "temperature": 1.0},
    )
