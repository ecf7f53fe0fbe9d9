"""One attempt of a run: choose the checkpoint, start the trainer, watch it, write down how it ended."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from launch import checkpoints
from launch.attempts import CRASHED, DONE, GIVE_UP, STOPPED, Attempts, last_step
from launch.checkpoints import Contents, WorldSizeError, newest_complete
from launch.compose import override, resolved, resolved_yaml, training_arguments
from launch.environment import TRACKING, TRACKING_IDS, public_environment, secrets, with_project, write_public
from launch.processes import Child, Signals
from launch.redact import mask
from launch.runfile import ROOT, RunFile

METRICS = "metrics.jsonl"
LOGGER_PATH = "VERL_FILE_LOGGER_PATH"
# marks that a job's script puts in an attempt's folder
END, LOST, TEARDOWN = "end", "lost", "teardown"


def say(text: str) -> None:
    """A line on standard output, secrets masked."""
    print(f"[launch] {mask(text)}", flush=True)


def new_tracking_id(name: str) -> str:
    """The same id in every attempt lets a tracker go on with the curve."""
    return f"{name}-{time.strftime('%Y%m%d%H%M%S')}-{os.urandom(2).hex()}"


def new_logs(root: Path) -> tuple[int, Path]:
    """Number and folder of the next attempt; the folder is made, so that no other attempt takes it."""
    number = 1
    (root / "logs").mkdir(parents=True, exist_ok=True)
    while True:
        logs = root / f"logs/attempt_{number}"
        try:
            logs.mkdir()
        except FileExistsError:
            number += 1
        else:
            return number, logs


@contextmanager
def only_one(root: Path):
    """Holds the run's folder by a lock, which is given to the trainer too: where the launcher alone was killed, the
    trainer still writes there.

    Raises:
        RuntimeError: another attempt has it.
    """
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"{root} is in use by another attempt (`fuser {root}/.lock` says which process); wait for it, end it, "
                "or give the run another name"
            ) from None
        yield lock.fileno()


def trainer_environment(run: RunFile, logs: Path, tracking_id: str, cluster: bool) -> dict[str, str]:
    """This process's environment with the run's variables; what is set already stays."""
    own = public_environment(run, tracking_id)
    env = own | {name: value for name, value in os.environ.items() if name not in run.env}
    # verl cuts the file when it opens it
    env |= {LOGGER_PATH: str(logs / METRICS), "PYTHONUNBUFFERED": "1"}
    env = with_project(env)
    env |= {name: own[name] for name in TRACKING_IDS}
    if not cluster:
        env.pop("RAY_ADDRESS", None)
    elif not env.get("RAY_ADDRESS"):
        raise RuntimeError(
            "RAY_ADDRESS is not set: an attempt on a cluster is started by `launch slurm` or `launch ray`"
        )
    return env


def worker_overrides(run: RunFile, env: Mapping[str, str]) -> list[str]:
    """verl's loop and its trackers run in a Ray worker, which on a cluster has its node's environment, not the
    attempt's: what belongs to the attempt alone goes there by `ray.init`. Ray refuses a name that the job has too."""
    names = (LOGGER_PATH, *TRACKING)
    return [
        override(f"++ray_kwargs.ray_init.runtime_env.env_vars.{name}", env[name])
        for name in names
        if name in env and name not in run.env
    ]


def close_lost(attempts: Attempts) -> None:
    """An attempt whose end was not written was lost with its launcher."""
    for item in attempts.items:
        if item.outcome == "running":
            attempts.end(item, "lost", None, last_step(Path(item.logs) / METRICS))
            say(f"attempt {item.number} was lost after step {item.last_step or item.resumed_from}")


def merge_metrics(root: Path, attempts: Attempts) -> None:
    """``metrics.jsonl`` of the whole run: where a step was done twice, the later attempt's record counts."""
    records: dict[int, bytes] = {}
    for item in attempts.items:
        path = Path(item.logs) / METRICS
        if not path.exists():
            continue
        records = {step: line for step, line in records.items() if step <= item.resumed_from}
        for line in path.read_bytes().splitlines():
            try:
                step = json.loads(line)["step"]
            except (ValueError, KeyError):
                continue  # cut short
            if step > item.resumed_from or step == 0:  # a resumed run validates before it trains
                records[step] = line
    partial = root / f".{METRICS}.{os.getpid()}"
    partial.write_bytes(b"".join(line + b"\n" for _, line in sorted(records.items())))
    os.replace(partial, root / METRICS)


def marked(logs: Path, name: str) -> bool:
    """Whether the job's script has put a mark in the attempt's folder. Listing a folder asks a network filesystem
    anew, where a look for one file may answer from a cache."""
    return name in os.listdir(logs)


def seconds_of_silence(files: Sequence[Path]) -> float:
    """Since one of the files last grew; 0 where there is none yet."""
    return max(0.0, time.time() - max((path.stat().st_mtime for path in files if path.exists()), default=time.time()))


def watch(child: Child, run: RunFile, logs: Path, signs: Sequence[Path] = ()) -> tuple[int, int | None]:
    """Wait for the trainer; its status and the signal that ended it, if one did. USR1 asks for a stop.

    The mark END counts as TERM. LOST (a node of the cluster is gone) ends the trainer as crashed, and so does silence:
    verl waits for ever for the weights' receiver in a vLLM engine that has died.

    Args:
        signs: files that grow while it lives, see `waits.silence_s`; none: it may be silent.
    """
    asked = False
    with Signals() as signals:
        while True:
            try:
                return child.wait(0.5), None
            except subprocess.TimeoutExpired:
                pass
            if signals.stop and not asked:
                asked = True
                (run.checkpoints / checkpoints.STOP_FILE).touch()
                say("stop requested: the trainer saves at the next step boundary")
            if marked(logs, END):
                signals.end = signals.end or signal.SIGTERM
            if signals.end is not None:
                say(f"{signal.Signals(signals.end).name}: ending the trainer")
                child.interrupt(run.waits.teardown_s)
                return child.process.poll() or -signal.SIGKILL, signals.end
            if marked(logs, LOST):
                say("a node of the cluster is gone: ending the trainer")
                child.interrupt(run.waits.teardown_s / 2)
                return child.process.poll() or -signal.SIGKILL, None
            if signs and seconds_of_silence(signs) > run.waits.silence_s:
                say(f"nothing was printed or logged for {run.waits.silence_s} s (waits.silence_s): ending the trainer")
                child.interrupt(run.waits.teardown_s / 2)
                return child.process.poll() or -signal.SIGKILL, None


def run_prepare(run: RunFile, env: dict[str, str], logs: Path) -> None:
    """The run file's own preparations, before the first attempt; RuntimeError where one fails."""
    done = run.root / ".prepared"
    if done.exists():
        return
    for command in run.prepare:
        say(f"prepare: {command}")
        child = Child(["bash", "-euo", "pipefail", "-c", command], logs / "prepare.log", secrets(run), env, ROOT)
        code, number = watch(child, run, logs)
        child.clear()
        if code or number:
            raise RuntimeError(f"prepare failed with status {code}: {command}. See {logs / 'prepare.log'}")
    done.touch()


def run_preflight(run: RunFile, env: dict[str, str], logs: Path) -> bool:
    """The checks, of every node where there is a cluster, in a process of their own; whether all passed."""
    spec = logs / "run.json"
    write_public(spec, run.to_json() + "\n", run)
    command = [sys.executable, "-m", "launch", "preflight", str(spec), "--attempt", str(logs)]
    child = Child(command, logs / "preflight.log", secrets(run), env, ROOT)
    code, number = watch(child, run, logs)
    child.clear()
    if code or number:
        say("preflight failed, nothing was started; preflight.at_start: false in the run file leaves it out")
    return not code and not number


def run_attempt(run: RunFile, cluster: bool, logs: Path | None = None) -> int:
    """Start the trainer once.

    Args:
        cluster: join the cluster at RAY_ADDRESS; otherwise the trainer starts Ray itself.
        logs: folder ``logs/attempt_N`` that the caller has made; None: a new one.

    Returns:
        DONE, GIVE_UP, STOPPED, CRASHED (may start again), or 128 + N after signal N.
    """
    with only_one(run.root) as lock:
        attempts = Attempts.read(run.root, new_tracking_id(run.name))
        close_lost(attempts)
        if refusal := attempts.refusal(run.resume.max_crashes):
            say(refusal)
            return GIVE_UP
        number, logs = (int(logs.name.rpartition("_")[2]), logs) if logs else new_logs(run.root)
        config = resolved(run, cluster)
        try:
            step = checkpoints.prepare(run.checkpoints, config, run.devices)
        except WorldSizeError as error:
            say(str(error))
            return GIVE_UP
        write_public(run.root / "config.yaml", resolved_yaml(run, cluster), run)
        env = trainer_environment(run, logs, attempts.tracking_id, cluster)
        run_prepare(run, env, logs)
        if run.preflight.at_start and not run_preflight(run, env, logs):
            return GIVE_UP
        attempt = attempts.begin(number, step, run.devices, logs)
        say(f"attempt {number}, from {f'step {step}' if step else 'the start'}; log: {logs}/train.log")
        command = [sys.executable, "-m", run.entry, *training_arguments(run, cluster)]
        command += worker_overrides(run, env) if cluster else []
        child = Child(command, logs / "train.log", secrets(run), env, ROOT, keep=(lock,))
        try:
            code, number_of_signal = watch(child, run, logs, signs=(logs / "train.log", logs / METRICS))
        finally:
            left = child.clear()
        if left:
            say(f"{left} processes that the trainer left were killed")
        saved = newest_complete(run.checkpoints, Contents.of(config))[0]
        outcome = outcome_of(code, number_of_signal, progress=saved > step)
        attempts.end(attempt, outcome, code, last_step(logs / METRICS))
        merge_metrics(run.root, attempts)
        return status_of(attempts, run, number_of_signal)


def outcome_of(code: int, ended_by: int | None, progress: bool) -> str:
    """What an exit status means. A stop without a new checkpoint would go on for ever: it counts as a crash."""
    if ended_by is not None:
        return "terminated"
    if code == DONE:
        return "done"
    return "stopped" if code == STOPPED and progress else "crashed"


def status_of(attempts: Attempts, run: RunFile, ended_by: int | None) -> int:
    """Exit status of the attempt that ended last, and a line that says what it means."""
    attempt = attempts.items[-1]
    say(f"attempt {attempt.number}: {attempt.outcome} (status {attempt.code}), last step {attempt.last_step}")
    if attempt.outcome == "done":
        return DONE
    if attempt.outcome == "stopped":
        return STOPPED
    if attempt.outcome == "terminated":
        return 128 + (ended_by or 0)
    if refusal := attempts.refusal(run.resume.max_crashes):
        say(refusal)
        return GIVE_UP
    return CRASHED


def run_until_done(run: RunFile, cluster: bool) -> int:
    """Attempt after attempt, as long as a crash may be followed by another start."""
    while True:
        status = run_attempt(run, cluster)
        if status == STOPPED:
            say("stopped at a checkpoint; the same command goes on from it")
        if status != CRASHED:
            return status
