"""The entry: ``python -m recipe.poise.main_poise [--config-name NAME] [hydra overrides]``."""

import sys

import hydra
import ray
from verl.trainer.main_ppo import run_ppo
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import validate_config
from verl.utils.device import auto_set_device

from recipe.poise.attention import settle_attention
from recipe.poise.config import check_block, check_config, check_types
from recipe.poise.moved import check_moved
from recipe.poise.plugin import check_registered
from recipe.poise.trackers import check_trackers
from recipe.poise.trainer.stop import EXIT_STATUS, StopRequested
from recipe.poise.trainer.verdicts import check_reward


@hydra.main(config_path="config", config_name="poise_trainer", version_base=None)
def main(config):
    check_registered()
    check_moved(config)
    auto_set_device(config)
    settle_attention(config)
    poise = check_types(config)
    if config.algorithm.adv_estimator == "poise":  # other estimators run as verl has them
        check_block(check_config(config), config)
    check_reward(config)
    check_trackers(config)
    if poise.seeded_rollouts:
        from recipe.poise.rollout.seeded import use_seeded_rollouts

        use_seeded_rollouts(config)
    validate_config(config=config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    from recipe.poise.trainer.task_runner import PoiseTaskRunner

    try:
        run_ppo(config, task_runner_class=PoiseTaskRunner)
    except StopRequested as stop:  # what Ray raises is a RayTaskError and of its cause's class too
        print(stop.args[0] if stop.args else stop)
        sys.exit(EXIT_STATUS)
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
