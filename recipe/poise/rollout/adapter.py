"""The sending end of the weight sync, at the run's own socket; `recipe.poise.rollout.vllm_extension` has the reason."""

from verl.workers.rollout.vllm_rollout import ServerAdapter

from recipe.poise.rollout.vllm_extension import PREFIX, own_socket


class RolloutAdapter(ServerAdapter):
    """verl's adapter; where vLLM has another extension than ours, it keeps verl's socket."""

    zmq_handle: str

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        extension = config.engine_kwargs.get("vllm", {}).get("worker_extension_cls") or ""
        if extension.startswith(PREFIX):
            self.zmq_handle = own_socket(self.zmq_handle)
