"""The seams of verl that POISE stands on: an upgrade that moves one fails here, by name."""

import inspect
import re
from importlib.metadata import version

import pytest
import torch
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.v1 import trainer_base
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, PPOTrainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tracking

from recipe.poise import plugin, trackers


def parameters(function):
    return list(inspect.signature(function).parameters)


def source(function):
    return inspect.getsource(function)


def test_version():
    assert version("verl") in plugin.VERL_VERSIONS
    plugin.check_registered()


@pytest.mark.parametrize("hook", ["_compute_old_log_prob", "_compute_values", "_compute_advantage", "_update_critic"])
def test_trainer_hooks_keep_their_signature(hook):
    assert parameters(getattr(PPOTrainer, hook)) == ["self", "batch", "metrics"]


def test_step_calls_the_hooks_in_our_order():
    text = source(PPOTrainer._step_once)
    calls = ["_compute_old_log_prob", "_compute_values", "_compute_advantage", "_update_critic", "_update_actor"]
    places = [text.index(f"self.{name}(") for name in calls]
    assert places == sorted(places)


def test_pool_manager_maps_roles_to_ray_classes():
    text = source(PPOTrainer._init_resource_pool_mgr)
    assert "self.role_worker_mapping[Role.Critic] = ray.remote(TrainingWorker)" in text
    setup = source(PPOTrainer._setup)
    assert setup.index("_init_tokenizer") < setup.index("_init_resource_pool_mgr")
    assert setup.index("self.critic_wg.reset()") < setup.index("self.actor_rollout_wg.init_model()")


def test_modes_stand_in_the_registry():
    assert issubclass(TRAINER_REGISTRY["sync"], PPOTrainerSync)
    assert issubclass(TRAINER_REGISTRY["colocate_async"], PPOTrainerColocateAsync)
    assert issubclass(TRAINER_REGISTRY["separate_async"], PPOTrainerSeparateAsync)


def test_log_prob_pass_computes_entropy_and_drops_the_flag():
    text = source(PPOTrainer._compute_old_log_prob)
    assert '"calculate_entropy": True' in text
    assert "batch = tq.kv_batch_put(" in text  # a fresh meta, without our capture flag


def test_critic_methods_that_the_seat_answers_to():
    assert "self.critic_wg.infer_batch(batch)" in source(PPOTrainer._compute_values)
    update = source(PPOTrainer._update_critic)
    assert "self.critic_wg.train_mini_batch(batch)" in update
    assert 'rename_dict(output["metrics"], "critic/")' in update
    assert "self.critic_wg.save_checkpoint(" in source(PPOTrainer._save_checkpoint)
    assert "self.critic_wg.load_checkpoint(" in source(PPOTrainer._load_checkpoint)


def test_estimators_of_other_names_get_rewards_mask_and_prompt_ids():
    from verl.trainer.ppo.ray_trainer import compute_advantage

    text = source(compute_advantage)
    for argument in ('"token_level_rewards"', '"response_mask"', '"config"', 'adv_kwargs["index"]'):
        assert argument in text
    assert "compute_advantage_for_multi_trajectories(" in source(trainer_base.PPOTrainer._compute_advantage)


def test_our_estimator_is_registered_and_refuses_a_strange_trainer():
    import recipe.poise.baseline.estimator  # noqa: F401

    estimator = core_algos.get_adv_estimator_fn("poise")
    with pytest.raises(RuntimeError, match="main_poise"):
        estimator(token_level_rewards=torch.zeros(1, 2), response_mask=torch.ones(1, 2), index=["a"])


def test_engine_hooks_and_registry():
    from verl.workers.engine import EngineRegistry, FSDPEngineWithLMHead

    import recipe.poise.capture.engine as engine

    assert parameters(FSDPEngineWithLMHead.forward_step) == ["self", "micro_batch", "loss_function", "forward_only"]
    assert parameters(FSDPEngineWithLMHead._build_model_optimizer) == ["self"]
    assert parameters(FSDPEngineWithLMHead._build_fsdp_module) == ["self", "module"]
    registry = EngineRegistry._engines["language_model"]
    for backend in ("fsdp", "fsdp2"):
        assert registry[backend]["cuda", "nvidia"] is engine.PoiseFSDPEngine
    assert registry["fsdp2"]["cpu"] is engine.PoiseCpuFSDPEngine
    values = EngineRegistry._engines["value_model"]
    assert values["fsdp"]["cuda", "nvidia"] is values["fsdp2"]["cuda", "nvidia"] is engine.ValueEngine
    assert values["fsdp2"]["cpu"] is engine.CpuValueEngine


def test_row_keys_and_padding_tags():
    from verl.trainer.ppo import padding_utils
    from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ

    assert 'f"{uid}_{session_id}_{i}"' in source(AgentLoopWorkerTQ._agent_loop_postprocess)
    assert "is_padding=True" in source(padding_utils.construct_minimal_padding_template)


def test_task_runner_asks_the_registry():
    from verl.trainer.main_ppo import TaskRunnerV1

    text = source(TaskRunnerV1.__ray_metadata__.modified_class.run)
    assert "get_trainer_cls(config.trainer.v1.trainer_mode)" in text


def test_the_value_model_is_loaded_by_a_function_that_is_looked_up_at_the_call():
    import verl.utils.model
    from verl.utils.model import load_valuehead_model
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngine

    from recipe.poise.capture.engine import configured_attention, load_value_model

    text = source(FSDPEngine._build_module)
    assert "from verl.utils.model import load_valuehead_model" in text
    assert parameters(load_value_model) == parameters(load_valuehead_model)
    # what it stands in for: drop it when verl reads override_config here
    assert 'attn_implementation="flash_attention_2"' in source(load_valuehead_model)
    with configured_attention():
        assert verl.utils.model.load_valuehead_model is load_value_model
    assert verl.utils.model.load_valuehead_model is load_valuehead_model


def test_weight_sync_has_a_socket_of_the_runs_own(monkeypatch):
    """Both ends add the raylet's process id to verl's address, which two runs on one machine share."""
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    plugin.register()  # vLLM's CPU build answers to verl's question for its version
    from verl.workers.rollout.base import get_rollout_class
    from verl.workers.rollout.vllm_rollout import ServerAdapter
    from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

    import recipe.poise.capture.engine  # noqa: F401
    from recipe.poise.cpu.vllm_extension import CpuWorkerExtension
    from recipe.poise.rollout.adapter import RolloutAdapter
    from recipe.poise.rollout.vllm_extension import own_socket

    assert get_rollout_class("vllm") is RolloutAdapter
    assert "self.zmq_handle = f" in source(ServerAdapter.__init__)
    assert "zmq_handle=self._get_zmq_handle()" in source(vLLMColocateWorkerExtension.update_weights_from_ipc)

    receiver = CpuWorkerExtension.__new__(CpuWorkerExtension)
    receiver.model_runner, receiver.local_rank = None, 0
    handles = set()
    for raylet in ("17", "18"):
        monkeypatch.setenv("RAY_RAYLET_PID", raylet)
        monkeypatch.setenv("VERL_RAY_JOB_ID", "01000000")
        assert receiver._get_zmq_handle() == own_socket("ipc:///tmp/rl-colocate-zmq-01000000-replica-0-rank-0.sock")
        handles.add(receiver._get_zmq_handle())
    assert len(handles) == 2


@pytest.mark.parametrize("name", trackers.PACKAGES)
def test_loggers_import_the_packages_that_we_look_for(name):
    assert name in tracking.Tracking.supported_backend
    imported = "torch.utils.tensorboard" if name == "tensorboard" else trackers.PACKAGES[name]
    assert re.search(rf"(import|from) {re.escape(imported)}\b", source(tracking))


def test_prompts_come_from_an_iterator_that_can_be_ours():
    fetch = source(PPOTrainer._fetch_one_gen_batch)
    assert "self.train_dataloader_it = iter(self.train_dataloader)" in fetch
    assert "batch_dict = next(self.train_dataloader_it)" in fetch and 'batch_dict["uid"]' in fetch
    assert "self._fetch_one_gen_batch()" in source(PPOTrainer._next_train_batch)
    # nothing else is asked of the loader
    text = inspect.getsource(trainer_base)
    assert len(re.findall(r"self\.train_dataloader\b", text)) == 5
    assert "self.train_dataloader.state_dict()" in text and "self.train_dataloader.load_state_dict(" in text
    assert source(PPOTrainer._setup).index("_init_dataloader") < source(PPOTrainer._setup).index("_load_checkpoint")


@pytest.mark.parametrize("trainer", [PPOTrainerSync, PPOTrainerColocateAsync])
def test_between_update_and_weight_sync_the_device_is_the_actors(trainer):
    fit = source(PPOTrainer.fit)
    order = ["self.step(", "self._save_checkpoint()", "self.on_step_end()", "self.on_validate_begin()"]
    places = [fit.index(call, fit.index("on_train_begin")) for call in order]
    assert places == sorted(places)
    for hook in (trainer.on_init_end, trainer.on_step_end):  # replicas sleep until here
        assert "self.checkpoint_manager.update_weights(" in source(hook)
    assert "self.checkpoint_manager.sleep_replicas()" in source(trainer.on_sample_end)
    setup = source(PPOTrainer._setup)
    assert setup.index("sleep_replicas()") < setup.index("self._load_checkpoint()")
    assert "prepare_metrics = self.prepare_step()" in source(PPOTrainer.step)


def test_the_agent_loop_asks_a_prompt_how_many_rollouts_it_gets():
    from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ

    from recipe.poise.trainer.choice import ROLLOUTS_FIELD

    text = source(AgentLoopWorkerTQ.__ray_metadata__.modified_class._run_prompt)
    assert f'prompt.pop("{ROLLOUTS_FIELD}", config.n' in text


def test_the_rollout_tokenises_with_a_builder_and_cuts_on_the_left():
    from verl.experimental.agent_loop.agent_loop import AgentLoopBase

    text = source(AgentLoopBase.ct_build_initial_tokens)
    assert "self.continuous_token_builder.build_initial_tokens(" in text
    assert "return self._cap_text_prompt_length(prompt_ids)" in text
    assert "return prompt_ids[-prompt_length:]" in source(AgentLoopBase._cap_text_prompt_length)


def test_a_batch_can_go_to_the_actor_without_transfer_queue():
    from tensordict import TensorDict
    from verl.protocol import BatchData
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngine
    from verl.workers.engine_workers import ActorRolloutRefWorker

    assert TensorDict in BatchData._CHUNKABLE_TYPES
    assert "self.actor.infer_batch(data)" in source(ActorRolloutRefWorker.compute_log_prob)
    assert 'data["loss_mask"].sum()' in source(FSDPEngine.forward_backward_batch)
    assert "self._autocast_dtype = param_dtype" in inspect.getsource(FSDPEngine)


def test_the_optimal_token_baseline_gets_its_inputs_from_us():
    """`recipe.poise.trainer.otb`: drop the mix-in when verl's V1 trainer hands the field on by itself."""
    from verl.trainer.ppo.core_algos import compute_optimal_token_baseline_advantage as estimator
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
    from verl.workers.utils.padding import response_from_nested

    from recipe.poise.trainer import otb

    wanted = ["token_level_rewards", "response_mask", "index", "old_log_probs", "sum_pi_squared"]
    assert parameters(estimator)[:5] == wanted
    assert otb.FIELD not in inspect.getsource(trainer_base)
    assert f'key="{otb.FLAG}"' in source(FSDPEngineWithLMHead.prepare_model_outputs)
    assert f'model_output["{otb.FIELD}"]' in source(FSDPEngineWithLMHead.prepare_model_outputs)
    # shifted as log_probs are
    assert 'response_from_nested(data.pop("log_probs"), data["response_mask"])' in source(
        PPOTrainer._compute_old_log_prob
    )
    assert parameters(response_from_nested) == ["tensor", "response_mask"]


def test_without_a_log_prob_pass_the_rollouts_log_probs_are_copied_and_nothing_is_corrected():
    text = source(PPOTrainer._compute_old_log_prob)
    bypass = text[text.index("if bypass_recomputing_logprobs:") : text.index("# 1. compute log probs")]
    assert 'data["old_log_probs"] = data.pop("rollout_log_probs")' in bypass and "return batch" in bypass
    assert "compute_log_prob(" not in bypass
    advantage = source(PPOTrainer._compute_advantage)
    # so rollout_is and rollout_rs are refused there; the loss has them
    assert '"rollout_log_probs" in data.batch and not bypass_recomputing_logprobs' in advantage
    assert "apply_bypass_mode" not in inspect.getsource(trainer_base)
    loss = source(core_algos.get_policy_loss_fn("bypass_mode"))
    assert 'config.policy_loss.get("rollout_correction", None)' in loss


def test_rejection_is_decided_by_old_and_rollout_log_probs_on_the_response_mask():
    from verl.trainer.ppo import rollout_corr_helper as helper

    assert "compute_rollout_correction_and_add_to_batch(data, rollout_corr_config)" in source(
        PPOTrainer._compute_advantage
    )
    whole = source(helper.compute_rollout_correction_and_rejection_mask)
    assert "log_ratio: torch.Tensor = old_log_prob - rollout_log_prob" in whole
    assert "compute_rollout_rejection_mask(" in whole
    assert parameters(helper.compute_rollout_rejection_mask) == [
        "log_ratio", "response_mask", "rollout_rs", "rollout_rs_threshold",
    ]  # fmt: skip


def test_what_an_agent_loop_leaves_of_a_session():
    """Prompt and response by their names, a mask of the model's own tokens, the reward on the last token."""
    from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput

    output = AgentLoopOutput(
        prompt_ids=[5, 6], response_ids=[7, 8, 9], response_mask=[1, 1, 0], response_logprobs=[-1.0, -2.0, 0.0],
        reward_score=0.5, metrics=AgentLoopMetrics(),
    )  # fmt: skip
    fields = output.as_dict()
    assert fields["prompts"].tolist() == [5, 6] and fields["responses"].tolist() == [7, 8, 9]
    assert fields["response_mask"].tolist() == [1, 1, 0] and fields["rm_scores"].tolist() == [0.0, 0.0, 0.5]
    assert fields["rollout_log_probs"].tolist() == [-1.0, -2.0, 0.0]


def test_separate_async_takes_old_log_probs_from_the_weights_that_a_step_began_with():
    """And by the base class's method, so that a mix-in's capture is in the pass."""
    text = source(PPOTrainerSeparateAsync._compute_old_log_prob)
    assert text.count("super()._compute_old_log_prob(batch, metrics)") == 3
    calls = ["save_model_to_cpu(self.local_trigger_step)", "restore_model_from_cpu(0)", "result = super()",
             "restore_model_from_cpu(self.local_trigger_step)"]  # fmt: skip
    places = [text.index(call) for call in calls]
    assert places == sorted(places)
    assert "ray.remote(DetachActorWorker)" in source(PPOTrainerSeparateAsync._init_resource_pool_mgr)


def test_a_step_updates_several_times_and_tells_which():
    assert parameters(PPOTrainer.step) == ["self", "metrics", "timing_raw"]
    assert parameters(PPOTrainer._step_once) == ["self", "metrics", "timing_raw", "sample_batch_size"]
    text = source(PPOTrainer.step)
    assert "self.local_trigger_step = trigger_idx" in text and "self._step_once(iter_metrics, timing_raw" in text
    assert "metrics.update(metrics_aggregator.get_aggregated_metrics())" in text


def test_rows_say_which_weights_they_are_of():
    from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopWorkerTQ

    assert '"max_global_steps": field["extra_fields"].get("max_global_steps")' in source(
        AgentLoopWorkerTQ._agent_loop_postprocess
    )
    assert "trajectory_staleness = (global_steps - 1) - max_global_steps" in source(PPOTrainer._compute_metrics)


def test_failed_prompts_are_thrown_away_by_a_method_that_can_be_wrapped():
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

    assert parameters(ReplayBuffer._evict_terminal_groups)[1:] == ["global_steps", "partition_id", "eviction_reasons"]
    assert "return stale_uids, dapo_uids, set(self.failure_keys[partition_id]), dapo_counts" in source(
        ReplayBufferAsync._terminal_eviction_reasons
    )
    assert "self._evict_terminal_groups(" in source(ReplayBufferAsync.wait_for_sampleable)
    assert "managers.append(standalone)" in source(PPOTrainerSeparateAsync._rollout_server_managers)


def test_the_module_of_a_checkpoint_engine_is_imported_where_weights_leave_and_arrive():
    from verl.checkpoint_engine.base import CheckpointEngineManager, CheckpointEngineWorker
    from verl.workers.engine_workers import ActorRolloutRefWorker

    for place in (CheckpointEngineManager.__init__, ActorRolloutRefWorker.init_model):
        assert "import_external_libs(" in source(place) and "custom_backend_module" in source(place)
    worker = source(CheckpointEngineWorker.__init__)  # our adapter is known before the worker asks for one
    assert worker.index("custom_backend_module or None") < worker.index("get_rollout_class(")
