"""verl's workers on a CPU: the process group is opened as plain gloo before verl asks for it.

verl would ask for "cpu:gloo,cpu:gloo", which torch refuses (a device may be named once); it skips a group that exists.
"""

import os

import torch.distributed as dist
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

# a critic's worker looks its engine up before verl has imported external_lib in that process
import recipe.poise.capture.engine  # noqa: F401


def init_process_group() -> None:
    """Open the default gloo group from the environment that verl's worker group sets (RANK, WORLD_SIZE, ...)."""
    if not dist.is_initialized():
        dist.init_process_group(
            "cpu:gloo",
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            init_method=os.environ.get("DIST_INIT_METHOD"),
        )


class CpuTrainingWorker(TrainingWorker):
    def __init__(self, *args, **kwargs):
        init_process_group()
        super().__init__(*args, **kwargs)


class CpuActorRolloutRefWorker(ActorRolloutRefWorker):
    actor_worker_cls = CpuTrainingWorker
    ref_worker_cls = CpuTrainingWorker
