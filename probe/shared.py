"""The probe that domains short of rows share: made of the newest rows of every domain, as many in all as one window
holds, and only as long as a domain with rows is short of them, a state that passes.

Shapes: R rows of a step, N rows in a window.
"""

import torch
from torch import Tensor

from probe.cross_fit import cross_fit
from probe.domain import DomainProbe
from probe.estimators import Estimator
from probe.settings import ProbeSettings
from probe.step import EarlierRows, StepRows
from probe.window import newest_groups


def shared_slots(settings: ProbeSettings, probes: list[DomainProbe]) -> list[Tensor] | None:
    """The slots of each domain's window that take part; None where nobody borrows, or there are too few rows."""
    if len(probes) < 2 or not any(_borrows(p) for p in probes) or not settings.borrow_rows:
        return None
    slots = [_newest(p, settings.window_rows // len(probes)) for p in probes]
    return slots if sum(map(len, slots)) >= settings.min_rows else None


def fit_shared(shared: Estimator, settings: ProbeSettings, probes: list[DomainProbe]) -> list[Tensor | None]:
    """Fit the shared probe while a domain borrows; its out-of-prompt predictions of each window's rows."""
    nothing: list[Tensor | None] = [None] * len(probes)
    slots = shared_slots(settings, probes)
    if slots is None:
        return nothing
    pairs = list(zip(probes, slots, strict=True))
    x_NF, target_N, weight_N, group_N = _columns(probes, slots)
    shared.fit(x_NF, target_N, group_N, weight_N)
    if shared.left_out_ is None:
        return nothing
    parts = shared.left_out_.split([len(s) for s in slots])
    whole = [len(s) == len(p.window) for p, s in pairs]  # a borrower has few rows: all of them took part
    return [
        part if all_of_it and _borrows(probe) else None
        for part, all_of_it, probe in zip(parts, whole, probes, strict=True)
    ]


def cross_fit_shared(
    shared: Estimator, settings: ProbeSettings, probes: list[DomainProbe], rows: StepRows
) -> Tensor | None:
    """(R,) values of a step's rows, each by a shared fit without the row's prompt; None where nobody borrows."""
    known = shared.strength_ > 0 or not shared.closed_form
    slots = shared_slots(settings, probes) if known else None
    if slots is None:
        return None
    return cross_fit(shared, EarlierRows(*_columns(probes, slots)), rows, settings.min_rows, None)


def _columns(probes: list[DomainProbe], slots: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, targets, what they count and their prompts, domain by domain."""
    pairs = list(zip(probes, slots, strict=True))
    return (
        torch.cat([p.window.feature[s] for p, s in pairs]),
        torch.cat([p.window.target[s] for p, s in pairs]),
        torch.cat([p.window.target_weight[s] for p, s in pairs]),
        torch.cat([p.window.group[s] * len(probes) + i for i, (p, s) in enumerate(pairs)]),
    )


def _borrows(probe: DomainProbe) -> bool:
    return len(probe.window) > 0 and probe.own_share < 1.0


def _newest(probe: DomainProbe, rows: int) -> Tensor:
    """Slots of the domain's newest whole groups, at most `rows` rows, oldest first."""
    order = probe.window.order
    return order[newest_groups(probe.window.group[order], rows)]
