"""Which row of a batch is which: ids, groups and sessions from TransferQueue's keys and tags.

Shapes: B rows of the batch.
"""

from dataclasses import dataclass
from typing import Any

import torch
import transfer_queue as tq
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The rows of one batch, in the batch's order.

    Attributes:
        id_B: int64; the row's index, or -(index + 1) for rows that the probe must not see: padding, and all but the
            last output of an agent loop with several outputs (they share one rollout, so they are no siblings).
        group_B: int64; the prompt, numbered in order of first appearance.
        last_B: int64; index of the last output of the row's session: its advantage is the session's.
        first_B: int64; index of the first output of the row's session: its prompt is the data's.
        padding_B: bool; rows that verl added to fill the batch.
    """

    id_B: Tensor
    group_B: Tensor
    last_B: Tensor
    first_B: Tensor
    padding_B: Tensor

    @property
    def several(self) -> bool:
        """Whether some session has several outputs."""
        return bool((self.first_B != self.last_B).any())

    @property
    def prompts(self) -> list[int]:
        """By group: a row whose prompt is the data's."""
        found: dict[int, int] = {}
        for group, row in zip(self.group_B.tolist(), self.first_B.tolist(), strict=True):
            found.setdefault(group, row)
        return list(found.values())


def index_rows(keys: list[str], tags: list[dict]) -> Rows:
    """Read ``{uid}_{session}_{output}`` keys (verl's AgentLoopWorkerTQ writes them).

    Raises:
        ValueError: a key has another form.
    """
    groups: dict[str, int] = {}
    outputs: dict[tuple[str, str], list[tuple[int, int]]] = {}  # session -> (output number, row) of each
    parsed = []
    for row, key in enumerate(keys):
        parts = key.rsplit("_", 2)
        if len(parts) != 3 or not parts[2].isdigit():
            raise ValueError(f"row key {key!r} is not of the form uid_session_output that verl 0.9.1 writes")
        uid, session, output = parts[0], parts[1], int(parts[2])
        groups.setdefault(uid, len(groups))
        outputs.setdefault((uid, session), []).append((output, row))
        parsed.append((uid, session))
    padding = [bool(tag.get("is_padding", False)) for tag in tags]
    first_rows, last_rows = ([end(outputs[session])[1] for session in parsed] for end in (min, max))
    ids = [row if row == last_rows[row] and not padding[row] else -(row + 1) for row in range(len(keys))]
    return Rows(
        id_B=torch.tensor(ids),
        group_B=torch.tensor([groups[uid] for uid, _ in parsed]),
        last_B=torch.tensor(last_rows),
        first_B=torch.tensor(first_rows),
        padding_B=torch.tensor(padding),
    )


def plain_column(batch, name: str) -> list[Any]:
    """A column of objects that are no tensors, from TransferQueue, which wraps them in one of several containers."""
    column = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=[name])[name]
    values = column.tolist() if hasattr(column, "tolist") else list(column)
    return [getattr(value, "data", value) for value in values]
