"""The run's own socket for replicas that stand alone, named by ``rollout.checkpoint_engine.custom_backend_module``.

verl imports that module in every process that hands weights to vLLM. The actor's workers know our adapter from the
capturing engine; a standalone replica's worker never imports that, and would wait at verl's socket while its vLLM
waits at ours (`recipe.poise.rollout.vllm_extension`).
"""

from verl.workers.rollout.base import _ROLLOUT_REGISTRY

ADAPTER = "recipe.poise.rollout.adapter.RolloutAdapter"

_ROLLOUT_REGISTRY["vllm", "async"] = ADAPTER
