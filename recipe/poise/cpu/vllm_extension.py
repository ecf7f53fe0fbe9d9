"""vLLM worker extension for vLLM's CPU build, named by ``rollout.engine_kwargs.vllm.worker_extension_cls``."""

import torch
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver

from recipe.poise.rollout.vllm_extension import WorkerExtension


class CpuWorkerExtension(WorkerExtension):
    """Receive the actor's weights and reload them layer by layer.

    vLLM-CPU packs each linear layer after loading and drops the plain weight, so verl's live ``load_weights`` finds no
    parameter to fill; vLLM's own ``reload_weights`` restores the parameters, loads, and packs again.
    """

    def update_weights_from_ipc(self, peft_config=None, base_sync_done=False, use_shm=False):
        """Raises NotImplementedError for LoRA adapters: a CPU rollout takes merged weights only."""
        if peft_config is not None and base_sync_done:
            raise NotImplementedError(
                "vLLM's CPU build takes no live LoRA adapter: set actor_rollout_ref.model.lora.merge=True"
            )
        received: list[tuple[str, torch.Tensor]] = []
        receiver = BucketedWeightReceiver(
            zmq_handle=self._get_zmq_handle(), device=torch.device("cpu"), use_shm=use_shm
        )
        # the bucket's memory is reused, hence the clone
        receiver.receive_weights(lambda bucket, is_last: received.extend((name, w.clone()) for name, w in bucket))
        self.model_runner.reload_weights(weights_iterator=iter(received))
