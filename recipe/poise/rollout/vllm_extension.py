"""vLLM worker extension, named by ``rollout.engine_kwargs.vllm.worker_extension_cls``: weights come from the own actor.

verl names the socket of the weight sync by the Ray job's id. In a Ray cluster of one's own that is the same number for
everyone, so of two runs on one machine (two Slurm jobs on a node, two terminals) one would load the other's weights,
or wait for ever. The raylet's process id, which Ray gives its workers and they hand on to vLLM, tells the runs apart.
"""

import os

from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

PREFIX = "recipe.poise."  # how worker_extension_cls of such an extension begins; the sender's side asks


def own_socket(handle: str) -> str:
    """verl's ``ipc://...`` address with the raylet's process id in it; the same for all processes of a node's Ray."""
    return f"{handle.removesuffix('.sock')}-raylet-{os.environ['RAY_RAYLET_PID']}.sock"


class WorkerExtension(vLLMColocateWorkerExtension):
    """verl's extension at a socket of the run's own; `recipe.poise.rollout.adapter` is the other end."""

    def _get_zmq_handle(self) -> str:
        return own_socket(super()._get_zmq_handle())
