"""In place of training: takes the trainer's arguments, counts steps over a real Ray cluster, saves, stops, crashes.

Without RAY_ADDRESS it does the same in this process alone.

It holds to the trainer's contract: checkpoints in verl's layout, metrics in VERL_FILE_LOGGER_PATH, a look for
`stop_requested` after each step, status 75 after the checkpoint at request.
"""

import json
import os
import re
import sys
import time
import zipfile
from pathlib import Path


def setting(name: str, default: str) -> str:
    values = [item.split("=", 1)[1] for item in sys.argv if item.split("=", 1)[0].lstrip("+") == name]
    return values[-1].strip("'\\") if values else default  # Hydra's quotes


def newest(folder: Path) -> int:
    tracker = folder / "latest_checkpointed_iteration.txt"
    return int(tracker.read_text()) if tracker.exists() else 0


def save_tensors(path: Path) -> None:
    """As whole as torch.save leaves it, without torch, whose import takes longer than all steps."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data.pkl", b"")


def save(folder: Path, step: int, ranks: int) -> None:
    path = folder / f"global_step_{step}"
    actor = path / "actor"
    (actor / "huggingface").mkdir(parents=True, exist_ok=True)
    (actor / "huggingface/config.json").write_text("{}")
    for rank in range(ranks):
        for name in ("model", "optim", "extra_state"):
            save_tensors(actor / f"{name}_world_size_{ranks}_rank_{rank}.pt")
    (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": ranks}))
    save_tensors(path / "data.pt")
    (folder / "latest_checkpointed_iteration.txt").write_text(str(step))


def work(seconds: float) -> tuple[str, bool]:
    """On a node: where it ran, and whether the tokens of the launching shell are there."""
    import ray

    time.sleep(seconds)
    return ray.get_runtime_context().get_node_id(), os.environ.get("WANDB_API_KEY") == os.environ.get("EXPECTED_KEY")


def on_all(nodes: list, seconds: float) -> list[tuple[str, bool]]:
    """One step on every node at once."""
    if nodes[0] is None:
        time.sleep(seconds)
        return [("here", True)]
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0, num_gpus=1)(work)
    return ray.get(
        [
            remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(seconds)
            for node in nodes
        ]
    )


def main() -> None:
    folder = Path(setting("trainer.default_local_dir", ""))
    steps, every = int(setting("trainer.total_training_steps", "8")), int(setting("trainer.save_freq", "2"))
    seconds, crash_at = float(setting("payload.seconds", "0.5")), setting("payload.crash_at", "")
    nodes = [None] * int(setting("trainer.n_gpus_per_node", "1"))
    if os.environ.get("RAY_ADDRESS"):
        import ray

        ray.init(log_to_driver=False)
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    print(f"payload: {len(nodes)} nodes, key {os.environ.get('WANDB_API_KEY')}", flush=True)
    metrics = open(os.environ["VERL_FILE_LOGGER_PATH"], "wb", buffering=0)
    for step in range(newest(folder) + 1, steps + 1):
        answers = on_all(nodes, seconds)
        if match := re.fullmatch(rf"{step}(:once)?", crash_at):
            mark = folder / "crashed"
            if not match[1] or not mark.exists():
                mark.touch()
                os._exit(3)
        stop = "stop_requested" in os.listdir(folder)
        if stop or step % every == 0 or step == steps:
            save(folder, step, len(nodes))
        data = {"training/global_step": step, "nodes": len({answer[0] for answer in answers})}
        data["secret_on_all"] = all(answer[1] for answer in answers)
        metrics.write(json.dumps({"step": step, "data": data}).encode() + b"\n")
        print(f"payload: step {step}", flush=True)
        if stop:
            sys.exit(75)


if __name__ == "__main__":
    main()
