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

stage environment poise_env dev
stage "ruff check" ruff check .
stage "ruff format" ruff format --check .
stage mypy mypy
stage "bash -n" bash_syntax
stage shellcheck shellcheck -x launch/*.sh .ci/run
stage pytest poise_run python -m pytest "$@"
