"""verl's V1 task runner with POISE's trainers chosen in its process."""

import ray
from verl.trainer.main_ppo import TaskRunnerV1


@ray.remote
class PoiseTaskRunner(TaskRunnerV1.__ray_metadata__.modified_class):
    def run(self, config):
        from recipe.poise.plugin import check_registered
        from recipe.poise.trainer.select import select_trainers

        check_registered()
        select_trainers(config)
        super().run(config)
