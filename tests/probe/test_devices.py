"""Nothing is made on another device than the rows': what is made without saying where would be on `meta` here, which
mixes with nothing. A machine without a GPU sees that way what only a GPU would. And what is done on the host wakes none
of its threads."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from probe import Crossing, FeatureLayout, ProbeBank, ProbeSettings
from probe.estimators.linear import fit_sigmoid
from probe.guard import ALWAYS, judge
from probe.settings import KINDS
from recipe.poise.baseline.advantage import compute_advantages

LAYOUT = FeatureLayout(("prompt", "response", "entropy"), (6, 6, 1))
SMALL = {"min_rows": 8, "exact_features": 4, "rank": 4, "window_rows": 100}


def steps(bank, step_rows, weighted, folder):
    """Three steps, each saved and loaded again."""
    for step in range(3):
        x_RF, reward_R, group_R = step_rows(prompts=32, seed=step)
        x_RF[1::2, :6] = x_RF[::2, :6]
        domain_R = torch.where(group_R % 5 == 0, 0, len(bank.probes) - 1)
        weight_R = 0.1 + reward_R if weighted else None
        with torch.device("meta"):
            if bank.crossing.fit == "fresh":
                said = bank.cross_fit(x_RF, reward_R, group_R, domain_R, weight_R)
            else:
                said = bank.predict(x_RF, domain_R, weight_R)
            numbers = (said.value_R, said.weight_R3, said.constant_R)
            found = compute_advantages(reward_R, group_R, *numbers, row_weight_B=said.row_weight_R, energy_B=weight_R)
            metrics = found.metrics() | bank.update(x_RF, reward_R, group_R, domain_R, step, weight_R, said)
            bank.save(folder)
            bank.load(folder)
        yield found, metrics


@pytest.mark.parametrize("fit", ["lagged", "fresh"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_stays_on_its_device(kind, fit, step_rows, tmp_path):
    crossing = Crossing("energy", 0.9, fit, ("prompt",))
    with torch.device("meta"):
        bank = ProbeBank(ProbeSettings(kind=kind, **SMALL), LAYOUT, device="cpu", crossing=crossing)
    own = bank.probes[0].estimator
    for member in (own, *getattr(own, "members", ())):
        member.steps = 3  # of a network's
    for found, metrics in steps(bank, step_rows, True, tmp_path / "probe"):
        assert found.advantage_B.isfinite().all() and metrics["rows"] == 64
    assert {"calibration_value_1", "calibration_target_5", "mae"} <= set(metrics)


@pytest.mark.parametrize("fit", ["lagged", "fresh"])
@pytest.mark.parametrize("guard", ["combine", "switch", *ALWAYS])
def test_domains_and_guards_stay_on_their_device(guard, fit, step_rows, tmp_path):
    settings = ProbeSettings(domains={"code": "code*"}, guard=guard, **SMALL | {"exact_features": 64})
    with torch.device("meta"):
        bank = ProbeBank(settings, LAYOUT, device="cpu", crossing=Crossing("uniform", None, fit, ("prompt",)))
    for found, metrics in steps(bank, step_rows, False, tmp_path / "probe"):
        assert found.advantage_B.isfinite().all() and "code/window_rows" in metrics


PRODUCTS = {"mm", "mv", "addmm", "addmv", "bmm", "dot", "vdot"}  # go to a library with threads of its own


class Products(TorchDispatchMode):
    """The largest tensors that go into products, by name."""

    def __init__(self):
        super().__init__()
        self.numbers: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            largest = max(part.numel() for part in args if isinstance(part, torch.Tensor))
            self.numbers[name] = max(largest, self.numbers.get(name, 0))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("weighted", [False, True])
def test_what_goes_by_the_host_takes_no_products_of_a_windows_rows(weighted):
    """On a host of sixteen threads each took a millisecond, and a fit of the link has some twenty."""
    rows = 512
    f_N, reward_N = torch.randn(rows, dtype=torch.float64), (torch.rand(rows) < 0.5).double()
    weight_N = torch.rand(rows, dtype=torch.float64) if weighted else None
    with Products() as seen:
        fit_sigmoid(f_N, reward_N, weight_N)
        judge("combine", f_N, reward_N, torch.arange(rows) // 2, weight_N)
    assert max(seen.numbers.values(), default=0) <= 9, seen.numbers
    with Products() as seen:
        f_N @ reward_N
    assert seen.numbers == {"dot": rows}, "the count sees a product"


class Calls(TorchDispatchMode):
    """How many operations of torch there were."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("weighted", [False, True])
def test_what_goes_by_the_host_asks_little_of_torch(weighted):
    """A GPU would be waited for in each of some two hundred calls, and a host of sixteen threads woken."""
    rows = 512
    f_N, reward_N = torch.randn(rows, dtype=torch.float64), (torch.rand(rows) < 0.5).double()
    weight_N = torch.rand(rows, dtype=torch.float64) if weighted else None
    for function in (
        lambda: fit_sigmoid(f_N, reward_N, weight_N),
        lambda: judge("combine", f_N, reward_N, torch.arange(rows) // 2, weight_N),
    ):
        with Calls() as calls:
            function()
        assert 0 < calls.count <= 12, calls.count
