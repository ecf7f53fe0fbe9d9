"""The sending end of the weight sync, at the run's own socket; `recipe.poise.rollout.vllm_extension` has the reason."""

import zmq
from verl.workers.rollout.vllm_rollout import ServerAdapter

from recipe.poise.rollout.vllm_extension import PREFIX, own_socket

ANSWER_S = 600.0


def limit_waiting(seconds: float) -> None:
    """For verl's sender, which waits without end for vLLM to come and to answer each bucket, also where it has died. It
    holds for the sockets that this process opens from now on in zmq's common context, where the sender's are."""
    for option in (zmq.SNDTIMEO, zmq.RCVTIMEO):
        zmq.Context.instance().setsockopt(option, int(1000 * seconds))


class RolloutAdapter(ServerAdapter):
    """verl's adapter; where vLLM has another extension than ours, it keeps verl's socket."""

    zmq_handle: str

    def __init__(self, config, *args, **kwargs):
        super().__init__(config, *args, **kwargs)
        extension = config.engine_kwargs.get("vllm", {}).get("worker_extension_cls") or ""
        if extension.startswith(PREFIX):
            self.zmq_handle = own_socket(self.zmq_handle)

    async def update_weights(self, *args, **kwargs):
        """Raises zmq.Again where vLLM does not answer."""
        limit_waiting(ANSWER_S)
        await super().update_weights(*args, **kwargs)
