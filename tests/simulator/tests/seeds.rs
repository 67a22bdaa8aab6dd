//! Runs the simulation: first the seeds that failed before, then a range of others. `SEED=… STEPS=…` replays one.

use std::{collections::BTreeMap, time::Instant};

use leasehold_simulator::Sim;
use rayon::prelude::*;

const FAILED_ONCE: &str = include_str!("failed_once.txt");
const STEPS: u64 = 6_000;
const SEEDS: u64 = 60;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

type Counts = BTreeMap<String, u64>;

fn run(seed: u64, steps: u64) -> Result<(u64, Counts), String> {
    let mut sim = Sim::new(seed);
    match sim.run(steps) {
        Ok(()) => Ok((sim.steps, sim.counts())),
        Err(rule) => Err(format!(
            "{}\nseed {seed}: {rule}\nSEED={seed} STEPS={steps} replays this run",
            sim.details()
        )),
    }
}

fn run_all(seeds: &[(u64, u64)]) -> Counts {
    let begun = Instant::now();
    let runs: Vec<_> = seeds.par_iter().map(|(seed, steps)| run(*seed, *steps)).collect();
    let (mut total, mut totals, mut failures) = (0, Counts::new(), Vec::new());
    for outcome in runs {
        match outcome {
            Ok((steps, counts)) => {
                total += steps;
                for (what, count) in counts {
                    *totals.entry(what).or_default() += count;
                }
            }
            Err(failure) => failures.push(failure),
        }
    }
    println!(
        "{} seeds, {} steps, {:.1} s",
        seeds.len(),
        total,
        begun.elapsed().as_secs_f64()
    );
    for (what, count) in &totals {
        println!("{count:>8} {what}");
    }
    let count = failures.len();
    for failure in &failures {
        println!("{}", failure.lines().rev().nth(1).unwrap_or_default());
    }
    if let Some(first) = failures.into_iter().next() {
        panic!("{count} of {} seeds failed; the first:\n{first}", seeds.len());
    }
    totals
}

#[test]
fn seeds_that_failed_before_pass() {
    let seeds: Vec<_> = FAILED_ONCE
        .lines()
        .filter_map(|line| {
            let mut numbers = line.split('#').next()?.split_whitespace().map(str::parse);
            Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
        })
        .collect();
    run_all(&seeds);
}

#[test]
fn every_invariant_holds_under_faults() {
    let steps = number("STEPS").unwrap_or(STEPS);
    let seeds: Vec<_> = match number("SEED") {
        Some(seed) => vec![(seed, steps)],
        None => {
            let from = number("FROM").unwrap_or(1);
            (from..from + number("SEEDS").unwrap_or(SEEDS))
                .map(|s| (s, steps))
                .collect()
        }
    };
    run_all(&seeds);
}
