"""Seconds per step of verl's trainer modes, each with and without a log-prob pass, POISE and GRPO: real runs.

    python benchmarks/modes.py --out outputs/modes
    python benchmarks/modes.py --out outputs/modes --modes sync --methods poise --steps 6

Each is a run of `launch` on an embedded task, from one model, with as many rollouts per update; one after the other, on
the cores that this program may use. A run that is done is not repeated. separate_async has a process that only
generates beside the one that trains: on a machine with few cores they share them, and a step is not shorter for it.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # not this folder, whose probe.py would hide the package

from benchmarks.needs import needs_packages  # noqa: E402

with needs_packages():
    import yaml

    from launch.runfile import ROOT
    from recipe.poise.compare.matrix import Cell
    from recipe.poise.compare.readers import Run, read_run

MODES = ("sync", "colocate_async", "separate_async")
METHODS = {"poise": 16, "grpo": 4}  # prompts of an update: 32 rollouts
PHASES = ("gen", "old_log_prob", "values", "update_critic", "update_actor", "update_weights")
BYPASS = {"algorithm.rollout_correction.bypass_mode": True}
PROMPT_STATES = {"poise.states": ["prompt"], "poise.signals": []}  # what bypass leaves of POISE's features
SEPARATE = {
    "actor_rollout_ref.hybrid_engine": False,
    "actor_rollout_ref.rollout.checkpoint_engine.backend": "gloo",
    "trainer.v1.separate_async.parameter_sync_step": 1,
}


def run_file(options: argparse.Namespace, mode: str, method: str, bypass: bool) -> dict:
    """The run as `launch` reads it."""
    name = f"{mode}_{method}_{'bypass' if bypass else 'pass'}"
    prompts = METHODS[method]
    assets = f"{options.out.absolute()}/assets"
    overrides = {
        "+method": method,
        "data.train_batch_size": prompts,
        "actor_rollout_ref.actor.ppo_mini_batch_size": prompts,
        "trainer.v1.trainer_mode": mode,
        "trainer.total_training_steps": options.steps,
        "trainer.test_freq": -1,
        "trainer.val_before_train": False,
        "trainer.save_freq": options.steps,
        "data.train_files": f"{assets}/train.parquet",
        "data.val_files": f"{assets}/val.parquet",
        "actor_rollout_ref.model.path": f"{assets}/model",
    }
    overrides |= BYPASS if bypass else {}
    overrides |= PROMPT_STATES if bypass and method == "poise" else {}
    overrides |= SEPARATE if mode == "separate_async" else {}
    prepare = f"python -m recipe.poise.quickstart.prepare --out {assets} --task {options.task} --seed 0"
    found = {
        "base": str(ROOT / "launch/runs/cpu_poise.yaml"),
        "name": name,
        "config": f"poise_{options.task}",
        "folder": f"{options.out.absolute()}/{name}",
        "prepare": [prepare],
        "preflight": {"at_start": False},
        "overrides": overrides,
    }
    if mode == "separate_async":
        found |= {"gpus_per_node": 2, "rollout": {"gpus_per_node": 1}}
    return found


def log_of(file: Path) -> Path:
    return file.with_suffix(".log")


def launched_quietly(file: Path) -> int:
    """Exit status of `launch local` on a run file; what it says goes to the file's log."""
    with open(log_of(file), "a") as output:
        command = [sys.executable, "-m", "launch", "local", str(file)]
        return subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT).returncode


def measured(run: Run, skip: int) -> dict[str, float]:
    """Medians over the updates after the first `skip`."""
    updates = [values for step, values in sorted(run.steps.items()) if step > skip and "timing_s/step" in values]

    def median(name: str) -> float:
        values = [update[name] for update in updates if name in update]
        return statistics.median(values) if values else float("nan")

    found = {"step": median("timing_s/step"), "tokens": median("rollout/generated_tokens")}
    found |= {phase: median(f"timing_s/{phase}") for phase in PHASES}
    pass_s = [update.get("poise/time_state_pass_s", 0.0) for update in updates]
    return found | {"state pass": statistics.median(pass_s) if pass_s else 0.0, "updates": len(updates)}


def table(found: dict[tuple[str, str, bool], dict[str, float]]) -> str:
    """A row per run; the ratio is to the first run of the method."""
    header = ["mode", "method", "log-prob pass", "seconds per step", "of sync with the pass", "tokens per step"]
    header += [*PHASES, "state pass"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for (mode, method, bypass), values in found.items():
        base = found.get(("sync", method, False))
        ratio = f"{values['step'] / base['step']:.2f}" if base else "–"
        cells = [mode, method, "no" if bypass else "yes", f"{values['step']:.2f}", ratio, f"{values['tokens']:.0f}"]
        cells += [f"{values[name]:.2f}" if values[name] == values[name] else "–" for name in (*PHASES, "state pass")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, required=True, help="folder of the runs")
    options.add_argument("--task", default="uneven", choices=("quickstart", "uneven", "wide"))
    options.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    options.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    options.add_argument("--steps", type=int, default=10)
    options.add_argument("--skip", type=int, default=2, help="steps at the start that do not count")
    return options


def main(argv: list[str] | None = None) -> int:
    options = parser().parse_args(argv)
    if not 0 <= options.skip < options.steps:
        print(f"error: --skip {options.skip} leaves nothing of --steps {options.steps}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    kinds = [(mode, method, bypass) for mode in options.modes for method in options.methods for bypass in (False, True)]
    found, run = {}, None
    for number, kind in enumerate(kinds, 1):
        content = run_file(options, *kind)
        file, text = options.out / f"{content['name']}.yaml", yaml.safe_dump(content)
        if file.exists() and file.read_text() != text:
            print(f"error: {file} is of other options: give another --out", file=sys.stderr)
            return 2
        file.write_text(text)
        cell = Cell(file, 0, Path(content["folder"]))
        print(f"[{number}/{len(kinds)}] {content['name']}{': done before' if cell.done else ''}", flush=True)
        if not cell.done and (status := launched_quietly(file)):
            print(f"error: it ended with status {status}; the end of {log_of(file)} says why", file=sys.stderr)
            return 1
        run = read_run(content["folder"])
        found[kind] = measured(run, options.skip)
    counted = sorted({values["updates"] for values in found.values()})
    print(f"\nMedians of {', '.join(map(str, counted))} steps after the first {options.skip}, task {options.task}.")
    if run is not None:
        print(f"{run.machine}; {len(os.sched_getaffinity(0))} cores for each run; {run.versions}\n")
    print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
