"""One bank for all ranks of a process group: rank 0 holds it, the others send rows and receive predictions.

What travels: each row once to rank 0 (features and a few numbers), and six numbers a row back. The result depends
neither on the number of ranks nor on how rows are spread over them.

Shapes: R rows of this rank, N rows of all ranks, F features.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from probe.bank import ProbeBank
from probe.prediction import Prediction


class DistributedBank:
    """Predicts and learns with `bank` on rank 0; every rank calls the same methods in the same order.

    Args:
        bank: on rank 0; None elsewhere.
        group: the process group, default: all ranks. Without torch.distributed, this process is rank 0 of one.
    """

    def __init__(self, bank: ProbeBank | None, group: dist.ProcessGroup | None = None):
        self.group = group
        alone = not dist.is_initialized()
        self.rank, self.ranks = (0, 1) if alone else (dist.get_rank(group), dist.get_world_size(group))
        if (bank is None) == (self.rank == 0):
            raise ValueError(f"rank {self.rank}: rank 0 brings the bank, and only rank 0")
        self.bank = bank
        # rank 0: the step's rows and, of a cross-fit, what was said of them; kept from predict to update
        self._rows: tuple[Tensor, Tensor, Prediction | None] | None = None

    def _counts(self, rows: int, device) -> list[int]:
        """How many rows each rank has."""
        if self.ranks == 1:
            return [rows]
        counts = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(self.ranks)]
        dist.all_gather(counts, torch.tensor([rows], device=device), group=self.group)
        return [int(count) for count in counts]

    def collect(self, rows_RC: Tensor) -> Tensor | None:
        """Any numbers of all ranks, a row each, on rank 0, in rank order; None elsewhere."""
        return self._gather(rows_RC, self._counts(len(rows_RC), rows_RC.device))

    def share(self, rows_RC: Tensor) -> Tensor:
        """Any numbers of all ranks, a row each, on every rank, in rank order."""
        if self.ranks == 1:
            return rows_RC
        counts = self._counts(len(rows_RC), rows_RC.device)
        gathered_NC = self._gather(rows_RC, counts)
        rows_NC = rows_RC.new_empty(sum(counts), rows_RC.shape[1]) if gathered_NC is None else gathered_NC
        dist.broadcast(rows_NC, group=self.group, group_src=0)
        return rows_NC

    @property
    def rows(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None] | None:
        """Rank 0, between `predict` and `update`: features, rewards, groups, domains and weights of all ranks' rows."""
        return None if self.bank is None or self._rows is None else _columns(self.bank, *self._rows[:2])

    def _gather(self, rows_RC: Tensor, counts: list[int]) -> Tensor | None:
        """Rows of all ranks on rank 0, in rank order; None elsewhere."""
        if self.ranks == 1:
            return rows_RC
        padded = rows_RC.new_zeros(max(counts), rows_RC.shape[1])
        padded[: len(rows_RC)] = rows_RC
        parts = [torch.empty_like(padded) for _ in counts] if self.rank == 0 else None
        dist.gather(padded, parts, group=self.group, group_dst=0)
        return None if parts is None else torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def predict(
        self,
        id_R: Tensor,
        x_RF: Tensor,
        reward_R: Tensor,
        group_R: Tensor,
        domain_R: Tensor | None = None,
        weight_R: Tensor | None = None,
    ) -> Prediction:
        """Values of this rank's rows, lagged or fresh as the bank's `crossing` says; the rows are kept for `update`.

        Args:
            id_R: int64, distinct over all ranks; rows with a negative id are padding: not learned, and predicted only
                from earlier steps.
            x_RF, reward_R, group_R, domain_R, weight_R: as in `ProbeBank.update`; groups may span ranks. All on the
                device that the process group communicates from. Weights come from all ranks or from none.
        """
        device = x_RF.device
        counts = self._counts(len(id_R), device)
        if domain_R is None:
            domain_R = torch.full_like(id_R, -1)
        columns = [id_R, group_R, domain_R, reward_R, *([] if weight_R is None else [weight_R])]
        # float64 holds ids and groups exactly
        head_RC = torch.stack([column.double().to(device) for column in columns], dim=1)
        head_NC, x_NF = self._gather(head_RC, counts), self._gather(x_RF.float(), counts)
        said_N6 = torch.empty(sum(counts), 6, device=device)
        if self.bank is not None and head_NC is not None and x_NF is not None:
            said_N6.copy_(self._predict(self.bank, head_NC, x_NF))
        if self.ranks > 1:
            dist.broadcast(said_N6, group=self.group, group_src=0)
        return Prediction.of_table(said_N6.split(counts)[self.rank])

    def _predict(self, bank: ProbeBank, head_NC: Tensor, x_NF: Tensor) -> Tensor:
        weight_N = head_NC[:, 4] if head_NC.shape[1] > 4 else None
        said_N6 = bank.predict(x_NF, _domains(bank, head_NC), weight_N).table_R6
        real = (head_NC[:, 0] >= 0).nonzero().squeeze(1)
        order = real[head_NC[real, 0].argsort()]  # the same rows in the same order, however they were spread
        crossed = None
        if bank.crossing.fit == "fresh":
            crossed = bank.cross_fit(*_columns(bank, head_NC[order], x_NF[order]))
            said_N6[order] = crossed.table_R6
        self._rows = (head_NC[order], x_NF[order], crossed)
        return said_N6

    def update(self, step: int = 0) -> dict[str, float]:
        """Learn the rows of the last `predict`; metrics on rank 0, nothing elsewhere. Raises RuntimeError where there
        was none."""
        if self.bank is None:
            return {}
        if self._rows is None:
            raise RuntimeError("there are no rows to learn: call predict first, once for each update")
        head_NC, x_NF, crossed = self._rows
        self._rows = None
        x_NF, reward_N, group_N, domain_N, weight_N = _columns(self.bank, head_NC, x_NF)
        return self.bank.update(x_NF, reward_N, group_N, domain_N, step, weight_N, crossed)


def _domains(bank: ProbeBank, head_NC: Tensor) -> Tensor:
    domain_N = head_NC[:, 2].long()
    return torch.where(domain_N < 0, len(bank.probes) - 1, domain_N)


def _columns(bank: ProbeBank, head_NC: Tensor, x_NF: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Features, rewards, groups, domains and weights."""
    weight_N = head_NC[:, 4] if head_NC.shape[1] > 4 else None
    return x_NF, head_NC[:, 3].float(), head_NC[:, 1].long(), _domains(bank, head_NC), weight_N
