"""verl's workers on a CPU: the process group is opened as plain gloo before verl asks for it.

verl would ask for "cpu:gloo,cpu:gloo", which torch refuses (a device may be named once); it skips a group that exists.
"""

import os

import torch.distributed as dist
from verl.experimental.separation.engine_workers import DetachActorWorker
from verl.single_controller.base.decorator import Dispatch, register
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


class CpuDetachActorWorker(DetachActorWorker):
    """For separate_async, where the weights that gave old log-probs are put aside and taken back."""

    actor_worker_cls = CpuTrainingWorker
    ref_worker_cls = CpuTrainingWorker

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_model_to_cpu(self, n):
        super().save_model_to_cpu(n)
        # "to the CPU" copies nothing where the weights are there: the saved ones would change with the actor's
        shards, spec = self.cpu_saved_models[n]
        copies = {name: (shard.clone(), placement) for name, (shard, placement) in shards.items()}
        self.cpu_saved_models[n] = (copies, spec)
