"""separate_async: a trainer, and replicas that stand alone; what verl's trainer of that mode lacks."""

import logging
from collections.abc import Callable
from contextlib import contextmanager

import ray
from ray.exceptions import RayError
from verl.trainer.ppo.v1 import trainer_separate_async
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync

HEALTH_S = 60.0
BATCHES = 4  # so many batches of prompts may fail in a row


@contextmanager
def without_its_info():
    """verl 0.9.1 says "hybrid replicas disabled" with an argument that `logging` refuses by a TypeError; below the
    logger's level it is not said."""
    logger, level = trainer_separate_async.logger, trainer_separate_async.logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


class FailureWatch:
    """Prompts whose generation failed since a batch was last complete.

    verl's buffer throws them away and asks others in their place, for ever where the servers are gone.

    Args:
        buffer: its `_evict_terminal_groups` is wrapped.
        limit: so many failures in a row end the run.
        check: called after each poll that found failures, with their number so far; raises where a server is gone.
    """

    def __init__(self, buffer, limit: int, check: Callable[[int], None]):
        self._evict, self._limit, self._check, self.failures = buffer._evict_terminal_groups, limit, check, 0
        buffer._evict_terminal_groups = self

    def __call__(self, global_steps, partition_id, eviction_reasons):
        failed = len(eviction_reasons[2])
        self.failures += failed
        if failed:
            self._check(self.failures)
        if self.failures > self._limit:
            raise RuntimeError(
                f"{self.failures} prompts failed in a row, more than {self._limit}, although the rollout servers "
                "answer: the first error of an agent loop or a reward function in this log says why"
            )
        return self._evict(global_steps, partition_id, eviction_reasons)


class SeparateMixin(PPOTrainerSeparateAsync):
    """verl's trainer, which also starts with ``actor_rollout_ref.hybrid_engine=False``, and ends when a rollout server
    is gone. The same command goes on from the newest checkpoint."""

    def _setup(self):
        with without_its_info():
            super()._setup()

    def _build_replay_buffer(self):
        buffer = super()._build_replay_buffer()
        self._failures = FailureWatch(buffer, BATCHES * self.config.data.train_batch_size, self._check_servers)
        return buffer

    def on_sample_end(self):
        self._failures.failures = 0
        super().on_sample_end()

    def on_step_end(self):
        try:
            super().on_step_end()
        except RayError as error:  # the weight sync speaks to every server
            self._check_servers(0, error)
            raise

    def _check_servers(self, failures: int, cause: Exception | None = None) -> None:
        """Raises RuntimeError where a rollout server, or vLLM's engine behind it, no longer answers."""
        for manager in self._rollout_server_managers():
            for address, server in zip(manager.server_addresses, manager.server_handles, strict=True):
                try:
                    ray.get(server.collective_rpc.remote("check_health"), timeout=HEALTH_S)
                except RayError as error:
                    lost = f", {failures} prompts are lost" if failures else ""
                    raise RuntimeError(
                        f"the rollout server at {address} is gone ({type(error).__name__}){lost}: the run ends here. "
                        "Started again, it goes on from its newest checkpoint"
                    ) from (cause or error)
