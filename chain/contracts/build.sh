#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Compiles src/ and writes abi/*.json for the Rust crates and the tests, so that cargo needs neither Node nor forge.
# With --check it writes nothing and fails if the checked-in files are stale.
set -euo pipefail
cd "$(dirname "$0")"
. ./tools.sh

"$FORGE" build src --quiet
node abi.js out abi "$@"
