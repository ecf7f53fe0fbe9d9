#!/usr/bin/env bash
# Linters, types, unit tests and the central real runs: POISE stopped and resumed, the quickstart, a job on a Ray cluster.
# With --all every mode for real, too. Other arguments go to pytest: bash launch/test.sh -m 'not e2e' -k window
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

stage environment poise_env dev
stage "ruff check" ruff check .
stage "ruff format" ruff format --check .
stage mypy mypy
stage "bash -n" bash_syntax
stage shellcheck shellcheck -x launch/*.sh .ci/run
if (($#)) && [[ $* != --all ]]; then
  stage pytest poise_run python -m pytest "$@"
else # a file's tests stay together; those that start Ray and train want the machine for themselves
  (($#)) && which="not long" || which="not extended and not long"
  stage "pytest, side by side" poise_run python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not e2e and $which"
  stage "pytest, end to end" poise_run python -m pytest -m "e2e and $which"
fi
