#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Breaks the escrow in each way of mutants/mutants.json, in a copy, and fails unless the suite notices every one.
# Arguments: names of mutants, to try only those.
set -euo pipefail
cd "$(dirname "$0")"
. ./tools.sh
exec env FORGE="$FORGE" node mutants/run.js "$@"
