"""What the probe costs and how good it is, beside the paper's form in scikit-learn, on planted data.

    python benchmarks/probe.py [--parts quality step drift memory growth] [--device cuda]

One thread unless --threads says otherwise; medians; ratios within one run. The peer is a batched pipeline of the
paper's form (randomised PCA of 32 and 64 directions, StandardScaler, Ridge(100), clip), refitted at each step.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from itertools import accumulate
from pathlib import Path
from statistics import mean, median

sys.path[0] = str(Path(__file__).resolve().parents[1])  # this file bears the name of the package it measures

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARTS = ("quality", "step", "drift", "memory", "growth")
parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
parser.add_argument("--sizes", nargs="+", type=int, default=[1536, 2560, 4096], help="features of a state")
parser.add_argument("--windows", nargs="+", type=int, default=[2048, 4096, 10240], help="rows of a window")
parser.add_argument("--new-rows", type=int, default=512, help="rows per step")
parser.add_argument("--steps", type=int, default=300, help="of the drifting signal")
parser.add_argument("--turn", type=float, default=0.02, help="how far the signal turns in a step")
parser.add_argument("--repeat", type=int, default=24, help="steps to take the median of")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--device", default="cpu")
parser.add_argument(
    "--clock", choices=("wall", "cpu"), default="wall", help="cpu: this process's time, for a core that others use too"
)
args = parser.parse_args()
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = str(args.threads)  # before numpy and torch are loaded

from benchmarks.needs import needs_packages  # noqa: E402

with needs_packages():
    import numpy as np
    import torch
    from tqdm import tqdm

    from benchmarks.peer import Peer
    from probe import ProbeBank, ProbeSettings
    from probe.estimators import Estimator, SubspaceRidge, make_estimator
    from probe.metrics import rmse
    from probe.planted import PlantedRows, PlantedWorld

HELD_OUT = 1024


def now() -> float:
    if args.device != "cpu":
        torch.cuda.synchronize()
    return time.process_time() if args.clock == "cpu" else time.perf_counter()


def timed(function):
    start = now()
    result = function()
    return result, now() - start


def peer_rmse(peer: Peer, rows: PlantedRows) -> float:
    return rmse(torch.from_numpy(peer.predict(rows.x_NF.numpy())), rows.value_N)


def estimators(layout) -> dict[str, Estimator]:
    """What is compared; the planted value is logistic, so the default without its sigmoid link is shown as well."""
    return {
        "default": make_estimator(ProbeSettings(), layout),
        "no link": SubspaceRidge(layout, link="clip"),
        "logistic": make_estimator(ProbeSettings(), layout, kind="logistic"),
    }


def quality() -> None:
    print(f"\nRMSE to the true value on 1,024 held-out rows, fitted from scratch; {args.clock} seconds to fit")
    names = estimators(PlantedWorld(2).layout())
    head = "  ".join(f"{name:>8} {'ratio':>6} {'s':>6}" for name in names)
    print(f"{'d':>6} {'rows':>6} {'peer':>8} {'s':>6}   {head}")
    worst = dict.fromkeys(names, 0.0)
    for size in args.sizes:
        for count in args.windows:
            world = PlantedWorld(size, args.seed)
            train, test = world.draw(count), world.draw(HELD_OUT)
            peer, seconds = timed(lambda: Peer(size).fit(train.x_NF.numpy(), train.target_N.numpy()))  # noqa: B023
            error = peer_rmse(peer, test)
            line = f"{size:>6} {count:>6} {error:>8.4f} {seconds:>6.2f}   "
            x, y, g, fresh = (t.to(args.device) for t in (train.x_NF, train.target_N, train.group_N, test.x_NF))
            for name, estimator in estimators(world.layout()).items():
                _, seconds = timed(lambda: estimator.fit(x, y, g))  # noqa: B023
                own = rmse(estimator.predict(fresh).cpu(), test.value_N)
                line += f"{own:>8.4f} {own / error:>6.3f} {seconds:>6.2f}  "
                worst[name] = max(worst[name], own / error)
            print(line, flush=True)
    print("largest ratio: " + ", ".join(f"{name} {ratio:.3f}" for name, ratio in worst.items()))


def learn(bank: ProbeBank, rows: PlantedRows, step: int, domain_R=None) -> tuple[float, float]:
    """Seconds of predict and update."""
    x, reward, group = (t.to(args.device) for t in (rows.x_NF, rows.reward_N, rows.group_N))
    _, predict = timed(lambda: bank.predict(x, domain_R))
    _, update = timed(lambda: bank.update(x, reward, group, domain_R, step=step))
    return predict, update


def step() -> None:
    """One step of three domains whose windows are full."""
    size, windows = 2560, {"math": 4096, "code": 3072, "default": 3072}
    total, world = sum(windows.values()), PlantedWorld(size, args.seed)
    three = ProbeSettings(domains={name: f"{name}*" for name in list(windows)[:-1]}, domain_rows=windows)
    bank = ProbeBank(three, world.layout(), device=args.device)
    share = [args.new_rows * rows // total // 2 * 2 for rows in windows.values()]

    def domains(counts) -> torch.Tensor:
        return torch.arange(len(counts)).repeat_interleave(torch.tensor(list(counts))).to(args.device)

    learn(bank, world.draw(total), 0, domains(windows.values()))
    times = []
    for number in tqdm(range(args.repeat), desc="step", leave=False, disable=None):
        times.append(learn(bank, world.draw(sum(share)), number + 1, domains(share)))
    peers, fresh = [], world.draw(sum(share)).x_NF.numpy()
    for _ in range(3):
        seconds = 0.0
        for probe, new_rows in zip(bank.probes, np.split(fresh, np.cumsum(share)[:-1]), strict=True):
            x, y = rows_of(probe.window)
            peer, fit = timed(lambda: Peer(size).fit(x, y))  # noqa: B023
            _, predict = timed(lambda: peer.predict(new_rows))  # noqa: B023
            seconds += fit + predict
        peers.append(seconds)
    totals = [p + u for p, u in times]
    rows = "/".join(map(str, windows.values()))
    print(f"\nOne step, three domains of {rows} rows, d = {size}, {sum(share)} new rows; {args.clock} seconds")
    print(f"{'':>8} {'median':>8} {'mean':>8} {'max':>8}")
    for name, values in (("predict", [p for p, _ in times]), ("update", [u for _, u in times]), ("total", totals)):
        print(f"{name:>8} {median(values):>8.4f} {mean(values):>8.4f} {max(values):>8.4f}")
    print(f"{'peer':>8} {median(peers):>8.4f} {mean(peers):>8.4f} {max(peers):>8.4f}")
    ratios = f"median {median(peers) / median(totals):.1f}, mean {mean(peers) / mean(totals):.1f}"
    print(f"peer / total: {ratios}", flush=True)


def rows_of(window) -> tuple[np.ndarray, np.ndarray]:
    """A window's rows and targets, for the peer."""
    return window.feature[window.order].cpu().numpy(), window.target[window.order].cpu().numpy()


def drift() -> None:
    print(f"\nRMSE to the true value on 1,024 fresh rows after incremental steps of {args.new_rows} rows")
    print(f"The signal turns by {args.turn} a step; the peer is refitted on the same window; last half of {args.steps}")
    print(f"{'d':>6} {'window':>7} {'peer':>8} {'probe':>8} {'ratio':>6} {'worst':>6}")
    for size in args.sizes:
        for window_rows in args.windows:
            world = PlantedWorld(size, args.seed, turn=args.turn)
            bank = ProbeBank(ProbeSettings(window_rows=window_rows), world.layout(), device=args.device)
            points = {args.steps - 1 - args.steps // 10 * index for index in range(5)}
            errors = []
            for number in tqdm(range(args.steps), desc=f"drift d={size} {window_rows}", leave=False, disable=None):
                learn(bank, world.draw(args.new_rows), number)
                if number in points:
                    test, (x, y) = world.draw(HELD_OUT), rows_of(bank.probes[0].window)
                    own = rmse(bank.predict(test.x_NF).value_R.cpu(), test.value_N)
                    errors.append((peer_rmse(Peer(size).fit(x, y), test), own))
                world.advance()
            peer, own = (mean(column) for column in zip(*errors, strict=True))
            worst = max(o / p for p, o in errors)
            print(f"{size:>6} {window_rows:>7} {peer:>8.4f} {own:>8.4f} {own / peer:>6.3f} {worst:>6.3f}", flush=True)


def peak_bytes(function) -> int:
    """Most bytes that torch held at once inside `function`, beyond what it held before."""
    if args.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profile.export_chrome_trace(file.name)
        events = [e for e in json.loads(Path(file.name).read_bytes())["traceEvents"] if e.get("name") == "[memory]"]
    held = accumulate(event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"]))
    return max(held)


def memory() -> None:
    print(
        "\nMemory in MB: what stays, against rows x features x 4 bytes; what a refresh under way keeps beside that; the"
    )
    print("most that torch held beyond both in a step, of all the steps of a refresh")
    head = f"{'window':>8} {'ratio':>6} {'estimator':>10} {'refresh':>8} {'workspace':>10}"
    print(f"{'d':>6} {'rows':>6} {'rows x F x 4':>13} {head}")
    for size in args.sizes:
        for count in args.windows:
            world = PlantedWorld(size, args.seed)
            bank = ProbeBank(ProbeSettings(window_rows=count), world.layout(), device=args.device)
            learn(bank, world.draw(count), 0)
            probe = bank.probes[0]
            window, peak, kept, number = _bytes(vars(probe.window).values()), 0, 0, 1
            while kept == 0 or getattr(probe.estimator, "changed_", 0) > 0:
                rows = world.draw(args.new_rows)
                peak = max(peak, peak_bytes(lambda: learn(bank, rows, number)))  # noqa: B023
                tensors = probe.estimator.state(probe.window.order)[0]
                kept = max(kept, _bytes(t for name, t in tensors.items() if name.startswith("refresh.")))
                number += 1
            estimator = _bytes(t for name, t in tensors.items() if not name.startswith("refresh."))
            base = count * world.layout().num_features * 4
            print(
                f"{size:>6} {count:>6} {base / 1e6:>13.1f} {window / 1e6:>8.1f} {(window + estimator) / base:>6.3f} "
                f"{estimator / 1e6:>10.1f} {kept / 1e6:>8.1f} {peak / 1e6:>10.1f}",
                flush=True,
            )


def _bytes(values) -> int:
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, torch.Tensor))


def growth() -> None:
    print(f"\nSeconds of a step with {args.new_rows} new rows and one full window: median, and mean with its refreshes")
    print(f"{'d':>6} {'rows':>6} {'predict':>8} {'update':>8} {'mean':>8}")
    for size in args.sizes:
        for count in args.windows:
            world = PlantedWorld(size, args.seed)
            bank = ProbeBank(ProbeSettings(window_rows=count), world.layout(), device=args.device)
            learn(bank, world.draw(count), 0)
            times = [learn(bank, world.draw(args.new_rows), number + 1) for number in range(args.repeat)]
            predict, update = (median(column) for column in zip(*times, strict=True))
            print(f"{size:>6} {count:>6} {predict:>8.4f} {update:>8.4f} {mean(map(sum, times)):>8.4f}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(args.threads)
    where = torch.cuda.get_device_name() if args.device != "cpu" else f"{platform.machine()} CPU"
    print(f"{where}, {args.threads} thread(s), torch {torch.__version__}, numpy {np.__version__}, seed {args.seed}")
    for part in PARTS:
        if part in args.parts:
            {"quality": quality, "step": step, "drift": drift, "memory": memory, "growth": growth}[part]()
