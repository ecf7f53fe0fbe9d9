#!/bin/bash
# What an attempt runs.
set -euo pipefail
cd /project
export TOKENIZERS_PARALLELISM=false
export HYDRA_FULL_ERROR=1
export VLLM_NO_USAGE_STATS=1
export RAY_USAGE_STATS_ENABLED=0
export DO_NOT_TRACK=1
export VERL_PLATFORM=cpu
export VLLM_TARGET_DEVICE=cpu
export VLLM_CPU_KVCACHE_SPACE=1
export VLLM_CPU_OMP_THREADS_BIND=nobind
export TORCHDYNAMO_DISABLE=1
export OMP_NUM_THREADS=1
export RAY_memory_monitor_refresh_ms=0
export RAY_worker_niceness=0
export HF_HUB_OFFLINE=1
python -m recipe.poise.quickstart.prepare --out /runs/cpu_poise/assets
exec /venv/bin/python -m recipe.poise.main_poise --config-name poise_quickstart \
  data.train_files=/runs/cpu_poise/assets/train.parquet \
  data.val_files=/runs/cpu_poise/assets/val.parquet \
  actor_rollout_ref.model.path=/runs/cpu_poise/assets/model \
  reward.custom_reward_function.path=/project/reward/reasoning_gym_verifier.py \
  reward.custom_reward_function.name=compute_score \
  trainer.save_freq=5 \
  trainer.max_actor_ckpt_to_keep=2 \
  trainer.max_critic_ckpt_to_keep=2 \
  poise.seed=3 \
  trainer.nnodes=1 \
  trainer.n_gpus_per_node=1 \
  trainer.default_local_dir=/runs/cpu_poise/checkpoints \
  trainer.resume_mode=auto \
  trainer.experiment_name=cpu_poise \
  hydra.run.dir=/runs/cpu_poise/hydra \
  ++ray_kwargs.ray_init.address=local
