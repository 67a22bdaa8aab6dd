#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Applies each mutant of mutants/mutants.json to a copy of the escrow, and fails unless the test suite detects it.
# Arguments: names of mutants, to run only these.
set -euo pipefail
cd "$(dirname "$0")"
. ./tools.sh
exec env FORGE="$FORGE" node mutants/run.js "$@"
