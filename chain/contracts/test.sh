#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the test suite against abi/Escrow.json, after checking that it is up to date with src/.
# Arguments are passed to `forge test` (--match-test NAME, -vvv, …).
set -euo pipefail
cd "$(dirname "$0")"
. ./tools.sh

./build.sh --check
FOUNDRY_PROFILE=test "$FORGE" test --no-match-contract GasTest "$@"
