#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the suite against abi/Escrow.json, after making sure that it is what src/ compiles to.
# Arguments go to `forge test` (--match-test NAME, -vvv, …).
set -euo pipefail
cd "$(dirname "$0")"
. ./tools.sh

./build.sh --check
FOUNDRY_PROFILE=test "$FORGE" test --no-match-contract GasTest "$@"
