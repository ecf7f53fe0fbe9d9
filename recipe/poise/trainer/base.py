"""What every trainer here has, whatever its estimator: counts, a stop on request, failed verdicts, CPU workers."""

import ray
from verl.trainer.ppo.utils import Role

from recipe.poise.trainer.counts import CountsMixin
from recipe.poise.trainer.cycle import CycleMixin
from recipe.poise.trainer.stop import StopMixin
from recipe.poise.trainer.verdicts import VerdictMixin


class BaseMixin(StopMixin, CycleMixin, CountsMixin, VerdictMixin):
    """Small steps do not wait for verl's poll; on a CPU the same roles, with workers that open a plain gloo group."""

    def _build_replay_buffer(self):
        buffer = super()._build_replay_buffer()
        buffer.poll_interval = self.config.poise.poll_interval_s
        return buffer

    def _init_resource_pool_mgr(self):
        super()._init_resource_pool_mgr()
        if self.config.trainer.device != "cpu":
            return
        from recipe.poise.cpu.workers import CpuActorRolloutRefWorker, CpuDetachActorWorker, CpuTrainingWorker

        actor = CpuDetachActorWorker if self.trainer_mode == "separate_async" else CpuActorRolloutRefWorker
        for role in self.role_worker_mapping:
            self.role_worker_mapping[role] = ray.remote(CpuTrainingWorker if role == Role.Critic else actor)
