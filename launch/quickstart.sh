#!/usr/bin/env bash
# POISE from nothing to a figure on one machine, by default on two CPU cores.
set -euo pipefail

usage() {
  cat <<'USAGE'
usage: bash launch/quickstart.sh [--task NAME] [--out DIR] [--fresh] [hydra overrides...]

Sets up .venv, makes the small default model and its data, trains with POISE and draws the figure.
  --task NAME quickstart (default), uneven: prompts of very unequal difficulty, longer responses, or wide: nearly
              half of the prompts too hard
  --out DIR   where everything goes (default: outputs/NAME)
  --fresh     train again although DIR holds a finished run with the same settings
Overrides go to recipe.poise.main_poise, for instance: trainer.total_training_steps=20 algorithm.adv_estimator=rloo
POISE_PREPARE_ARGS passes options to recipe.poise.quickstart.prepare. The knobs of the set-up are in launch/env.sh.
USAGE
}

TASK=quickstart
OUT=
FRESH=0
OVERRIDES=()
while (($#)); do
  case "$1" in
    -h | --help) usage && exit ;;
    --out) OUT=${2:?--out needs a directory} && shift ;;
    --out=*) OUT=${1#--out=} ;;
    --task) TASK=${2:?--task needs a name} && shift ;;
    --task=*) TASK=${1#--task=} ;;
    --fresh) FRESH=1 ;;
    -*) usage >&2 && echo "unknown option: $1" >&2 && exit 2 ;;
    *) OVERRIDES+=("$1") ;;
  esac
  shift
done

case "$TASK" in
  quickstart | uneven | wide) ;;
  *) usage >&2 && echo "unknown task: $TASK" >&2 && exit 2 ;;
esac
OUT=${OUT:-outputs/$TASK}

# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
cd "$POISE_ROOT"

PHASES=()
phase_ends() { # NAME: what took the seconds since the last call
  PHASES+=("$1=$((SECONDS - ${PHASE_START:-0}))")
  PHASE_START=$SECONDS
}

summarise() { # ARGS... go to the summary
  python -m recipe.poise.quickstart.summary --metrics "$OUT/metrics.jsonl" --out "$OUT" "$@"
  poise_say "checkpoints: $OUT/checkpoints   resolved settings: $OUT/hydra/.hydra/config.yaml"
}

# A finished run with the same settings is shown, not repeated; any other earlier run is put aside.
SETTINGS="prepare: ${POISE_PREPARE_ARGS:-} overrides: ${OVERRIDES[*]:-}"
# shellcheck disable=SC2119  # the script's own arguments are not for it
poise_env
phase_ends environment
if [[ $FRESH == 0 && -f "$OUT/finished" && "$(<"$OUT/finished")" == "$SETTINGS" ]]; then
  poise_say "$OUT holds a finished run with these settings; --fresh trains again"
  summarise
  exit
fi
if [[ -e "$OUT/metrics.jsonl" || -e "$OUT/checkpoints" ]]; then
  ASIDE="$OUT/earlier/$(date +%Y%m%d-%H%M%S)"
  mkdir -p "$ASIDE"
  for name in finished metrics.jsonl figure.png train.log checkpoints hydra; do
    if [[ -e "$OUT/$name" ]]; then mv "$OUT/$name" "$ASIDE/"; fi
  done
  poise_say "the earlier run is now in $ASIDE"
fi

export HF_HUB_OFFLINE=1 # the model is local
poise_say "model and data: $OUT/assets"
# shellcheck disable=SC2086  # several options in one variable
poise_run python -m recipe.poise.quickstart.prepare --task "$TASK" --out "$OUT/assets" ${POISE_PREPARE_ARGS:-}
phase_ends "model and data"

DATA=(
  data.train_files="$OUT/assets/train.parquet"
  data.val_files="$OUT/assets/val.parquet"
)
REWARD=(
  reward.custom_reward_function.path="$POISE_ROOT/reward/reasoning_gym_verifier.py"
  reward.custom_reward_function.name=compute_score
)
MODEL=(actor_rollout_ref.model.path="$OUT/assets/model")
TRAINER=(
  trainer.default_local_dir="$OUT/checkpoints"
  hydra.run.dir="$OUT/hydra"
)
DEVICE=()
if [[ $POISE_ACCELERATOR == gpu ]]; then # the config describes a CPU
  DEVICE=(
    trainer.device=cuda
    actor_rollout_ref.rollout.dtype=bfloat16
    actor_rollout_ref.rollout.gpu_memory_utilization=0.3
    actor_rollout_ref.rollout.engine_kwargs.vllm.worker_extension_cls=recipe.poise.rollout.vllm_extension.WorkerExtension
  )
fi

poise_say "training; the first step takes some minutes to come; everything it prints is in $OUT/train.log"
export VERL_FILE_LOGGER_PATH="$OUT/metrics.jsonl"
python -m recipe.poise.quickstart.summary --follow --metrics "$OUT/metrics.jsonl" --out "$OUT" & # ends with this script
FOLLOWER=$!
STATUS=0
poise_run python -m recipe.poise.main_poise --config-name "poise_$TASK" \
  "${DATA[@]}" "${REWARD[@]}" "${MODEL[@]}" "${TRAINER[@]}" "${DEVICE[@]}" "${OVERRIDES[@]}" >"$OUT/train.log" 2>&1 || STATUS=$?
sleep 1.5 # its last lines
kill "$FOLLOWER" 2>/dev/null && wait "$FOLLOWER" 2>/dev/null || true
if ((STATUS)); then
  tail -n 40 "$OUT/train.log" >&2
  poise_fail "training ended with status $STATUS; the whole log is $OUT/train.log" || exit "$STATUS"
fi
printf '%s\n' "$SETTINGS" >"$OUT/finished"
phase_ends training
summarise --phases "${PHASES[@]}"
