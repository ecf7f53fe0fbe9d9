"""Rollouts that repeat: each one's sampling seed is a function of the run's seed, the step, the prompt and the session.

vLLM otherwise draws from one generator per replica, so a rollout depends on which requests happen to share a batch
with it. Chosen by ``poise.seeded_rollouts``; for tests, for comparing runs, and for resuming as if never stopped.
"""

import hashlib
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

AGENT_LOOP = "poise_seeded_single_turn"
AGENT_LOOP_FILE = Path(__file__).parents[1] / "config" / "agent_loops.yaml"


def sampling_seed(*parts: int) -> int:
    """A seed in [0, 2**31) that is the same in every process, unlike ``hash``."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big") >> 1


class SeededSingleTurnAgentLoop(SingleTurnAgentLoop):
    """verl's single-turn loop with a seed of its own per rollout (``actor_rollout_ref.rollout.seed`` is the run's)."""

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs) -> AgentLoopOutput:
        place = (int(kwargs[key]) for key in ("global_steps", "index", "session_id"))
        seed = sampling_seed(int(self.rollout_config.seed), *place)
        # a copy: the sessions of a prompt share the dictionary
        return await super().run({**sampling_params, "seed": seed}, priority=priority, **kwargs)


def use_seeded_rollouts(config: DictConfig) -> None:
    """Point verl at the loop above.

    Raises:
        ValueError: the run names an agent loop of its own, which this one would replace.
    """
    agent = config.actor_rollout_ref.rollout.agent
    if agent.default_agent_loop != "single_turn_agent" or agent.agent_loop_config_path:
        raise ValueError(
            f"poise.seeded_rollouts=True replaces the single-turn agent loop, but this run uses "
            f"{agent.default_agent_loop!r} ({agent.agent_loop_config_path}). Set poise.seeded_rollouts=False."
        )
    agent.default_agent_loop = AGENT_LOOP
    agent.agent_loop_config_path = str(AGENT_LOOP_FILE)
