# SPDX-License-Identifier: Apache-2.0
# Sourced by the scripts in this folder: locates the tools that `npm ci` installs.
FORGE=$PWD/node_modules/@foundry-rs/forge-linux-amd64/bin/forge
export FOUNDRY_DISABLE_NIGHTLY_WARNING=1
if [[ ! -x $FORGE ]]; then
  echo "forge is missing: run 'npm ci' in chain/contracts first" >&2
  exit 1
fi
