#!/usr/bin/env node
// SPDX-License-Identifier: Apache-2.0
// Extracts the ABI and the bytecode from forge's artifacts, and writes or compares them.
// Usage: abi.js OUT_FOLDER ABI_FOLDER [--check]
'use strict';
const { existsSync, mkdirSync, readFileSync, writeFileSync } = require('fs');
const { join } = require('path');

const [out, folder, mode] = process.argv.slice(2);
const stale = [];
for (const name of ['Escrow', 'TestToken']) {
  const { abi, bytecode } = JSON.parse(readFileSync(join(out, `${name}.sol`, `${name}.json`), 'utf8'));
  const text = `${JSON.stringify({ abi, bytecode: bytecode.object }, null, 1)}\n`;
  const path = join(folder, `${name}.json`);
  if (mode === '--check') {
    if (!existsSync(path) || readFileSync(path, 'utf8') !== text) stale.push(path);
  } else {
    mkdirSync(folder, { recursive: true });
    writeFileSync(path, text);
  }
}
if (stale.length > 0) {
  console.error(`stale: ${stale.join(', ')}; run chain/contracts/build.sh and commit what it writes`);
  process.exit(1);
}
