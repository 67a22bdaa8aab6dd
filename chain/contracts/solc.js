#!/usr/bin/env node
// SPDX-License-Identifier: Apache-2.0
// forge calls a native solc. This wrapper uses the npm package instead, so that a build needs only `npm ci`.
'use strict';
const { readFileSync, writeSync } = require('fs');

const args = process.argv.slice(2);
if (args.includes('--version')) {
  // The version of the package ("0.8.37+commit.x.Emscripten.clang"), without starting the compiler.
  const { version } = require('solc/package.json');
  write(`solc, the solidity compiler commandline interface\nVersion: ${version}\n`);
} else if (args.includes('--standard-json')) {
  write(require('solc').compile(readFileSync(0, 'utf8')));
} else {
  process.stderr.write(`solc.js knows --version and --standard-json, not: ${args.join(' ')}\n`);
  process.exit(1);
}

// process.stdout is asynchronous on pipes, and an early exit would truncate a large response.
function write(text) {
  let rest = Buffer.from(text);
  while (rest.length > 0) {
    try {
      rest = rest.subarray(writeSync(1, rest));
    } catch (error) {
      if (error.code !== 'EAGAIN') throw error;
    }
  }
}
