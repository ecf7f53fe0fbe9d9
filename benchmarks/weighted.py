"""Rows that count by their energy, and values cross-fitted: what that costs, how good it is, and what a cap does.

    python benchmarks/weighted.py [--parts cost pace quality caps]

On planted rows of which E[e r] / E[e] is known (probe.planted.WeightedWorld). cost: seconds of a step, all settings and
the scikit-learn peer in turn, on the same rows. pace: of the subspace's refreshes, at once or in parts. quality:
weighted error to the true value on prompts that were not learned. caps: the same, and E[e (r - b)^2] over the oracle's,
for caps of the weights.
"""

import argparse
import os
import platform
import sys
import time
from pathlib import Path
from statistics import mean, median, stdev

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not this folder, whose probe.py would hide the package

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARTS = ("cost", "pace", "quality", "caps")
parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
parser.add_argument("--size", type=int, default=2560, help="features of a state")
parser.add_argument("--windows", nargs="+", type=int, default=[2048, 4096], help="rows of a window; cost: the last")
parser.add_argument("--new-rows", type=int, default=512, help="rows per step")
parser.add_argument("--repeat", type=int, default=48, help="steps that are timed")
parser.add_argument("--peer-every", type=int, default=4, help="steps from one fit of the timed peer to the next")
parser.add_argument("--turn", type=float, default=0.02, help="how far the signal turns in a step")
parser.add_argument("--tail", type=float, default=1.0, help="standard deviation of the energies' logarithm")
parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
parser.add_argument("--weighted", choices=("link", "fit"), default="link", help="where weights enter the probes")
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: this process's time")
args = parser.parse_args()
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = str(args.threads)  # before numpy and torch are loaded

from benchmarks.needs import needs_packages  # noqa: E402

with needs_packages():
    import torch
    from torch import Tensor

    from benchmarks.peer import Peer
    from probe import Crossing, ProbeBank, ProbeSettings
    from probe.estimators import SubspaceRidge
    from probe.metrics import rmse
    from probe.planted import WeightedRows, WeightedWorld
    from probe.prediction import Prediction
    from probe.window import SlidingWindow

HELD_OUT = 1024
CAPS = (None, 0.999, 0.99, 0.95, 0.9)
FORMS = [(weights, fit) for weights in ("uniform", "energy") for fit in ("lagged", "fresh")]


def now() -> float:
    return time.process_time() if args.clock == "cpu" else time.perf_counter()


def make_bank(world: WeightedWorld, window: int, weights="energy", fit="lagged", cap=None) -> ProbeBank:
    crossing = Crossing(weights, cap, fit, ("prompt",))
    settings = ProbeSettings(window_rows=window, weighted=args.weighted)
    return ProbeBank(settings, world.layout(), crossing=crossing)


def say(bank: ProbeBank, rows: WeightedRows) -> Prediction:
    weight_N = None if bank.crossing.weights == "uniform" else rows.weight_N
    if bank.crossing.fit == "fresh":
        return bank.cross_fit(rows.x_NF, rows.reward_N, rows.group_N, None, weight_N)
    return bank.predict(rows.x_NF, None, weight_N)


def learn(bank: ProbeBank, rows: WeightedRows, step: int, said: Prediction | None = None) -> None:
    weight_N = None if bank.crossing.weights == "uniform" else rows.weight_N
    bank.update(rows.x_NF, rows.reward_N, rows.group_N, step=step, weight_R=weight_N, said=said)


def fit_peer(bank: ProbeBank, weighted: bool) -> Peer:
    """The peer of the bank's window."""
    window = bank.probes[0].window
    x, y, w = (t[window.order].numpy() for t in (window.feature, window.target, window.target_weight))
    return Peer(args.size).fit(x, y, w if weighted else None)


def cost() -> None:
    rows, world = args.windows[-1], WeightedWorld(args.size, args.seeds[0], tail=args.tail, turn=args.turn)
    banks = {form: make_bank(world, rows, *form) for form in FORMS}
    seconds: dict = {form: [] for form in FORMS} | {"uniform": [], "energy": []}
    warm = 3 * rows // args.new_rows
    for step in range(warm + args.repeat):
        new = world.draw(args.new_rows)
        for form, bank in banks.items():
            start = now()
            said = say(bank, new)
            between = now()
            learn(bank, new, step, said)
            if step >= warm:
                seconds[form].append((between - start, now() - between))
        if step >= warm and (step - warm) % args.peer_every == 0:
            for weights in ("uniform", "energy"):
                start = now()
                fit_peer(banks[weights, "lagged"], weights == "energy").predict(new.x_NF.numpy())
                seconds[weights].append(now() - start)
        world.advance()
    print(f"\nOne step: window of {rows} rows, d = {args.size}, {args.new_rows} new rows; {args.clock} seconds")
    print(f"{args.repeat} steps, seed {args.seeds[0]}; the peer after every {args.peer_every}th, on the same window")
    columns = ("say", "update", "median", "mean", "max", "peer", "median x", "mean x")
    print(f"{'weights':>8} {'fit':>7} " + " ".join(f"{name:>8}" for name in columns))
    for weights, fit in FORMS:
        parts, peer = seconds[weights, fit], seconds[weights]
        both = [sum(pair) for pair in parts]
        numbers = [median(p for p, _ in parts), median(u for _, u in parts), median(both), mean(both), max(both)]
        line = " ".join(f"{number:>8.4f}" for number in (*numbers, median(peer)))
        ratios = (median(peer) / median(both), mean(peer) / mean(both))
        print(f"{weights:>8} {fit:>7} {line} " + " ".join(f"{ratio:>8.1f}" for ratio in ratios), flush=True)


class AtOnce(SubspaceRidge):
    """Refreshed in one step."""

    def _in_parts(self, rows: int) -> bool:
        return False


def pace() -> None:
    shares = (0.5, 1.0, 2.0, 4.0)  # change of the window, rows that come and go counted, from a refresh to the next
    names = [(form, share) for form in (AtOnce, SubspaceRidge) for share in shares]
    rows, seconds, errors = args.windows[-1], {name: [] for name in names}, {name: [] for name in names}
    for seed in args.seeds:
        world = WeightedWorld(args.size, seed, tail=args.tail, turn=args.turn)
        window = SlidingWindow(rows, world.layout().num_features)
        followers = {name: name[0](world.layout(), refresh_share=name[1], weighted=args.weighted) for name in names}
        full = 2 * rows // args.new_rows
        for step in range(full + args.repeat):
            new = world.draw(args.new_rows)
            weight = {"weight_R": new.weight_N, "target_weight_R": new.target_weight_N}
            change = window.push(new.x_NF, new.reward_N, new.target_N, new.target_N, new.group_N, step, **weight)
            test = world.draw(HELD_OUT)
            for name, follower in followers.items():
                start = now()
                follower.follow(window, change)
                if step >= full:
                    seconds[name].append(now() - start)
                    errors[name].append(error(follower.predict(test.x_NF), test))
            world.advance()
    print(f"\nRefreshes: window of {rows} rows, d = {args.size}, turn {args.turn:g}; {args.repeat} steps a seed")
    print(f"RMSE on {HELD_OUT} fresh rows a step, weighted, over that of the first line; {args.clock} seconds of a fit")
    columns = ("RMSE", "ratio", "worst step", "median s", "mean s", "max s")
    print(f"{'refresh':>8} {'share':>6} " + " ".join(f"{name:>10}" for name in columns))
    base = errors[names[0]]
    for name in names:
        worst = max(own / first for own, first in zip(errors[name], base, strict=True))
        numbers = (mean(errors[name]), mean(errors[name]) / mean(base), worst)
        numbers += (median(seconds[name]), mean(seconds[name]), max(seconds[name]))
        how = "at once" if name[0] is AtOnce else "in parts"
        print(f"{how:>8} {name[1]:>6g} " + " ".join(f"{number:>10.4f}" for number in numbers), flush=True)


def error(value_N: Tensor, rows: WeightedRows) -> float:
    """Root of the mean squared error to the true value, weighted by the expected energy."""
    return rmse(value_N, rows.value_N, rows.mean_weight_N)


def quality() -> None:
    print("\nRMSE to E[e r] / E[e], weighted by E[e], on prompts that were not learned: mean of 4 steps, window full")
    names = ("constant", "peer", "weighted peer", "lagged, uniform", "lagged", "fresh")
    print(f"{'window':>7} {'seed':>5} " + " ".join(f"{name:>16}" for name in (*names, "lagged ratio", "fresh ratio")))
    for rows in args.windows:
        for seed in args.seeds:
            world = WeightedWorld(args.size, seed, tail=args.tail, turn=args.turn)
            plain, lagged, fresh = (make_bank(world, rows, *form) for form in (FORMS[0], FORMS[2], FORMS[3]))
            full, errors = 2 * rows // args.new_rows, []
            for step in range(full + 4):
                new = world.draw(args.new_rows)
                if step >= full:
                    peers = [
                        torch.from_numpy(fit_peer(bank, weighted).predict(new.x_NF.numpy()))
                        for bank, weighted in ((plain, False), (lagged, True))
                    ]
                    said = [say(bank, new) for bank in (plain, lagged, fresh)]
                    values = [said[1].constant_R, *peers, *(one.value_R for one in said)]
                    errors.append([error(value, new) for value in values])
                for bank in (plain, lagged, fresh):
                    learn(bank, new, step)
                world.advance()
            found = [mean(column) for column in zip(*errors, strict=True)]
            ratios = [found[4] / found[2], found[5] / found[2]]
            print(f"{rows:>7} {seed:>5} " + " ".join(f"{number:>16.4f}" for number in (*found, *ratios)), flush=True)


def caps() -> None:
    """What a cap costs in bias and saves in noise: the probe's value and the constant, by earlier rows, capped."""
    print(f"\nCaps of the weights at a quantile; {len(args.seeds)} seeds, mean and its standard error over seeds")
    print("error: as in quality. variance: sum e (r - b)^2 over the oracle's, in expectation; of probe and constant")
    print(f"{'window':>7} {'tail':>5} {'cap':>6} {'error':>15} {'over no cap':>16} {'variance':>15} {'constant':>15}")
    for rows in args.windows:
        found: dict = {cap: [] for cap in CAPS}
        for seed in args.seeds:
            world = WeightedWorld(args.size, seed, tail=args.tail, turn=args.turn)
            banks, full = {cap: make_bank(world, rows, cap=cap) for cap in CAPS}, 2 * rows // args.new_rows
            points: dict = {cap: [] for cap in CAPS}
            for step in range(full + 4):
                new = world.draw(args.new_rows)
                for cap, bank in banks.items():
                    if step >= full:
                        said = bank.predict(new.x_NF)
                        points[cap].append((error(said.value_R, new), *excess(new, said.value_R, said.constant_R)))
                    learn(bank, new, step)
                world.advance()
            for cap, numbers in points.items():
                found[cap].append([mean(column) for column in zip(*numbers, strict=True)])
        for cap, seeds in found.items():
            ratio = [one[0] / base[0] for one, base in zip(seeds, found[None], strict=True)]
            columns = [[one[index] for one in seeds] for index in range(3)]
            cells = [spread(columns[0]), spread(ratio), spread(columns[1]), spread(columns[2])]
            name = "none" if cap is None else f"{cap:g}"
            print(f"{rows:>7} {args.tail:>5g} {name:>6} " + " ".join(f"{cell:>15}" for cell in cells), flush=True)


def excess(rows: WeightedRows, *baselines: Tensor) -> list[float]:
    """E[e (r - b)^2] of each baseline over that of b*, for rewards of 0 and 1: E[e] ((b - b*)^2 + b* (1 - b*))."""
    best, weight = rows.value_N.double(), rows.mean_weight_N.double()
    oracle = weight @ (best * (1 - best))
    return [float(1 + weight @ (baseline.double() - best).square() / oracle) for baseline in baselines]


def spread(numbers: list[float]) -> str:
    error = f"{stdev(numbers) / len(numbers) ** 0.5:.4f}" if len(numbers) > 1 else "?"
    return f"{mean(numbers):.4f} +- {error}"


if __name__ == "__main__":
    torch.set_num_threads(args.threads)
    print(f"{platform.machine()} CPU, {args.threads} thread(s), torch {torch.__version__}, seeds {args.seeds}")
    for part in PARTS:
        if part in args.parts:
            {"cost": cost, "pace": pace, "quality": quality, "caps": caps}[part]()
