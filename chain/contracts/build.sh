#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Compiles src/ and writes abi/*.json, which the Rust crates and the tests use: cargo needs no node and no forge.
# With --check it writes nothing and fails when what is checked in is stale.
set -euo pipefail
cd "$(dirname "$0")"
. ./tools.sh

"$FORGE" build src --quiet
node abi.js out abi "$@"
