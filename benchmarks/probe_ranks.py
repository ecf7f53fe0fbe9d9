"""What the probe's communication costs against the number of ranks, over gloo on one machine, and at 1,024 ranks.

    python benchmarks/probe_ranks.py [--ranks 1 2 4 8 16] [--rows 512] [--size 2560]

Each step gathers the rows (features and four numbers) on rank 0 and broadcasts five numbers a row. Medians over steps;
the slowest rank's time counts. The extrapolation is a least-squares line in ranks and bytes, with its largest error.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not this folder, whose probe.py would hide the package

from benchmarks.needs import needs_packages  # noqa: E402

with needs_packages():
    import numpy as np
    import torch
    import torch.distributed as dist

    from probe import DistributedBank, ProbeBank, ProbeSettings
    from probe.planted import PlantedWorld

BYTES = 4


def worker(args) -> None:
    """One rank: steps with a barrier before each; rank 0 prints the seconds of the parts."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{args.init}", rank=args.rank, world_size=args.of)
    world = PlantedWorld(args.size, seed=0)
    bank = ProbeBank(ProbeSettings(), world.layout()) if args.rank == 0 else None
    shared = DistributedBank(bank)
    rows = world.draw(args.rows)
    mine = torch.arange(args.rows).tensor_split(args.of)[args.rank]
    whole, own, update = [], [], []
    for step in range(args.steps + 2):
        dist.barrier()
        start = time.perf_counter()
        shared.predict(mine, rows.x_NF[mine], rows.reward_N[mine], rows.group_N[mine])
        seconds = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
        dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
        start = time.perf_counter()
        shared.update(step)
        update.append(time.perf_counter() - start)
        start = time.perf_counter()
        if bank is not None:
            bank.predict(rows.x_NF)
        whole.append(float(seconds))
        own.append(time.perf_counter() - start)
    if args.rank == 0:
        found = {"predict": whole[2:], "own": own[2:], "update": update[2:]}
        print(json.dumps({name: median(values) for name, values in found.items()}))
    dist.destroy_process_group()


def measure(ranks: int, rows: int, args) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        options = [f"--init={folder}/init", f"--of={ranks}", f"--rows={rows}", f"--size={args.size}"]
        options.append(f"--steps={args.steps}")
        processes = [
            subprocess.Popen([sys.executable, __file__, f"--rank={rank}", *options], stdout=subprocess.PIPE, text=True)
            for rank in range(ranks)
        ]
        outputs = [process.communicate(timeout=600)[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"{ranks} ranks: a process ended with an error")
    return json.loads(outputs[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument(
        "--rows", type=int, default=512, help="rows of a step, over all ranks; also half and twice that"
    )
    parser.add_argument("--size", type=int, default=2560, help="features of a state")
    parser.add_argument("--steps", type=int, default=9)
    for name in ("init", "rank", "of"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS, type=str if name == "init" else int)
    args = parser.parse_args()
    if args.rank is not None:
        return worker(args)
    os.environ["OMP_NUM_THREADS"] = "1"
    features = 2 * args.size + 3
    print(f"{platform.machine()} CPU, {os.cpu_count()} cores, gloo over loopback, torch {torch.__version__}")
    print(f"d = {args.size}, {args.steps} steps; 'own' is the bank's part of predict, 'travel' the rest")
    print(f"{'ranks':>6} {'rows':>6} {'MB':>7} {'predict s':>10} {'own s':>8} {'travel s':>9} {'update s':>9}")
    points = []
    for ranks in args.ranks:
        for rows in (args.rows // 2, args.rows, args.rows * 2):
            found = measure(ranks, rows, args)
            travel, size = found["predict"] - found["own"], rows * features * BYTES
            print(
                f"{ranks:>6} {rows:>6} {size / 1e6:>7.1f} {found['predict']:>10.4f} {found['own']:>8.4f} "
                f"{travel:>9.4f} {found['update']:>9.4f}",
                flush=True,
            )
            if ranks > 1:
                points.append((1.0, ranks, size, travel))
    table = np.array(points)
    (start, per_rank, per_byte), *_ = np.linalg.lstsq(table[:, :3], table[:, 3], rcond=None)
    error = np.abs(table[:, :3] @ [start, per_rank, per_byte] - table[:, 3]).max()
    line = f"{start:.4f} s + {per_rank * 1e3:.3f} ms x ranks + {per_byte * 1e9:.3f} ms x MB"
    print(f"\ntravel = {line} (largest error {error:.4f} s)")
    for rows in (512, 8192):
        size = rows * features * BYTES
        seconds = start + 1024 * per_rank + size * per_byte
        print(f"1,024 ranks, {rows:,} rows a step, {size / 1e6:.0f} MB to rank 0: {seconds:.2f} s by this line")
        print(f"    the bytes alone at 10 GB/s: {size / 10e9:.4f} s")


if __name__ == "__main__":
    main()
