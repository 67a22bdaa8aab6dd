// SPDX-License-Identifier: Apache-2.0
// Mutation testing: applies each mutant to a copy of the contracts, builds it, and runs the test suite against it. A
// mutant that survives shows a rule that no test covers.
'use strict';
const { execFile } = require('child_process');
const { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } = require('fs');
const { availableParallelism, tmpdir } = require('os');
const { dirname, join } = require('path');

const root = join(__dirname, '..');
const forge = process.env.FORGE;
const wanted = process.argv.slice(2);
const all = JSON.parse(readFileSync(join(__dirname, 'mutants.json'), 'utf8'));
const unknown = wanted.filter((name) => !all.some((mutant) => mutant.name === name));
if (unknown.length > 0) fail(`no such mutant: ${unknown.join(', ')}`);
const mutants = wanted.length > 0 ? all.filter((mutant) => wanted.includes(mutant.name)) : all;

// Few runs with a fixed seed, so that the many mutants are fast and results are reproducible. Without the optimizer a
// mutant compiles in half the time, but exceeds the size limit of a real chain.
const suite = {
  FOUNDRY_PROFILE: 'test',
  FOUNDRY_FUZZ_RUNS: '64',
  FOUNDRY_INVARIANT_RUNS: '24',
  FOUNDRY_INVARIANT_SHRINK_RUN_LIMIT: '0',
  FOUNDRY_FUZZ_SEED: '0x1ea5e',
  FOUNDRY_CODE_SIZE_LIMIT: '100000',
};
// Fast tests first, which detect most mutants. MUTANTS_MATCH=InvariantTest runs the invariants only.
const stages = process.env.MUTANTS_MATCH
  ? [['--match-contract', process.env.MUTANTS_MATCH]]
  : [['--no-match-contract', 'GasTest|InvariantTest'], ['--match-contract', 'InvariantTest']];

main().catch((error) => fail(error.stack));

async function main() {
  const began = Date.now();
  const base = mkdtempSync(join(tmpdir(), 'leasehold-mutants-'));
  process.on('exit', () => rmSync(base, { recursive: true, force: true }));
  for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(1));
  const first = await stage(join(base, '0'));
  const sound = await verdict(first);
  if (sound.outcome !== 'passed') fail(`the suite must pass without a mutant, but ${sound.outcome} by ${sound.test}:\n${sound.output}`);
  const folders = [first];
  for (let i = 1; i < Math.min(availableParallelism(), mutants.length); ++i) {
    folders.push(join(base, String(i)));
    cpSync(first, folders[i], { recursive: true, verbatimSymlinks: true, preserveTimestamps: true });
  }
  const queue = [...mutants];
  const bad = [];
  await Promise.all(folders.map(async (folder) => {
    for (let mutant = queue.shift(); mutant; mutant = queue.shift()) {
      const { outcome, test } = await tryMutant(folder, mutant);
      console.log(outcome === 'failed' ? `killed  ${mutant.name}  by ${test}` : `${outcome.toUpperCase()}  ${mutant.name}`);
      if (outcome !== 'failed') bad.push(`${mutant.name} (${outcome}): ${mutant.why}`);
    }
  }));
  if (bad.length > 0) fail(`mutants that no test killed:\n  ${bad.join('\n  ')}`);
  console.log(`${mutants.length} mutants killed in ${Math.round((Date.now() - began) / 1000)} s`);
}

async function stage(folder) {
  mkdirSync(folder);
  for (const name of ['foundry.toml', 'solc.js', 'abi.js', 'src', 'test', 'abi']) {
    cpSync(join(root, name), join(folder, name), { recursive: true });
  }
  symlinkSync(join(root, 'node_modules'), join(folder, 'node_modules'));
  return folder;
}

async function tryMutant(folder, { name, file, search, replace }) {
  const path = join(folder, file);
  const sound = readFileSync(path, 'utf8');
  if (sound.split(search).length !== 2) fail(`${name}: its text must occur in ${file} exactly once`);
  writeFileSync(path, sound.replace(search, () => replace));
  try {
    return await verdict(folder);
  } finally {
    writeFileSync(path, sound);
  }
}

/// passed, failed (a test failed), or broken (the build failed, which proves nothing).
async function verdict(folder) {
  const built = await run(folder, forge, ['build', 'src'], { FOUNDRY_PROFILE: 'mutant' });
  if (built.code !== 0) return { outcome: 'broken', output: built.output };
  const taken = await run(folder, process.execPath, ['abi.js', 'out/mutant', 'abi'], {});
  if (taken.code !== 0) return { outcome: 'broken', output: taken.output };
  for (const stage of stages) {
    const tested = await run(folder, forge, ['test', '--fail-fast', ...stage], suite);
    if (tested.code === 0) continue;
    const failed = /\[FAIL[\s\S]*?\b((?:test|invariant)\w*)\(/.exec(tested.output);
    return failed ? { outcome: 'failed', test: failed[1] } : { outcome: 'broken', output: tested.output };
  }
  return { outcome: 'passed' };
}

function run(cwd, command, args, env) {
  return new Promise((resolve) => {
    const options = { cwd, env: { ...process.env, ...env }, maxBuffer: 64 << 20, timeout: 300_000 };
    execFile(command, args, options, (error, stdout, stderr) => {
      resolve({ code: error ? (error.code ?? 'killed') : 0, output: `${stdout}${stderr}` });
    });
  });
}

function fail(message) {
  console.error(message);
  process.exit(1);
}
