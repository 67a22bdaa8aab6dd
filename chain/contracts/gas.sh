#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Measures each action as a separate transaction and writes gas/escrow.json. With --check it compares and fails on
# any difference.
set -euo pipefail
cd "$(dirname "$0")"
. ./tools.sh

./build.sh --check
export FOUNDRY_PROFILE=test
case "${1:-}" in
  "") "$FORGE" test --isolate --match-contract GasTest --gas-snapshot-emit true ;;
  --check) "$FORGE" test --isolate --match-contract GasTest --gas-snapshot-emit false --gas-snapshot-check true ;;
  *) echo "usage: gas.sh [--check]" >&2; exit 2 ;;
esac
