#!/usr/bin/env bash
# Linters, types and all tests. Arguments go to pytest: bash launch/test.sh -m 'not e2e' -k window
set -euo pipefail

# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$POISE_ROOT"

stage() { # NAME CMD...
  local name=$1 start=$SECONDS status=0
  shift
  printf '\n== %s\n' "$name"
  "$@" || status=$?
  printf '== %s: %s after %d s\n' "$name" "$( ((status)) && echo "FAILED ($status)" || echo passed)" $((SECONDS - start))
  return "$status"
}

bash_syntax() { for script in launch/*.sh .ci/run; do bash -n "$script" || return; done; }

training_at_once() { # 1 to 4
  local memory_kb at_once
  memory_kb=$(awk '/^MemAvailable/ {print $2}' /proc/meminfo 2>/dev/null || echo 0)
  at_once=$((memory_kb / 10000000))
  at_once=$((at_once < $(nproc) ? at_once : $(nproc)))
  echo $((at_once < 1 ? 1 : at_once > 4 ? 4 : at_once))
}

stage environment poise_env dev
stage "ruff check" ruff check .
stage "ruff format" ruff format --check .
stage mypy mypy
stage "bash -n" bash_syntax
stage shellcheck shellcheck -x launch/*.sh .ci/run
if (($#)); then
  stage pytest poise_run python -m pytest "$@"
else # a file's tests stay together; those that start Ray and train need 2 cores and up to 10 GB each
  stage "pytest, side by side" poise_run python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not e2e and not long"
  stage "pytest, end to end" poise_run python -m pytest -n "$(training_at_once)" --dist loadgroup -m "e2e and not long"
fi
