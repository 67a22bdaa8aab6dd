//! Runs each scenario, and compares the violated invariants with the table of findings: an open finding is shown by at
//! least one of its seeds, and a closed one by none.

use std::collections::{BTreeMap, BTreeSet};

use leasehold_simulator::{
    Sim,
    scenario::{FINDINGS, Finding, Scenario, State},
};
use rayon::prelude::*;

/// How often things happened in a run, or the violated invariant and what the run was like.
type Outcome = Result<BTreeMap<String, u64>, (String, String)>;

fn run(finding: &Finding, seed: u64) -> Outcome {
    let mut sim = Sim::with(seed, [finding.scenario].into());
    match sim.run(finding.steps) {
        Ok(()) => Ok(sim.counts()),
        Err(violation) => {
            let details = format!("{}\n{} seed {seed}: {violation}", sim.details(), name(finding));
            Err((violation, details))
        }
    }
}

/// The seeds of a finding; the variables `FROM` and `SEEDS` set another first one and another number of them.
fn seeds(finding: &Finding) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|n| n.parse().ok());
    let from = number("FROM").unwrap_or(finding.seeds.0);
    from..from + number("SEEDS").unwrap_or(finding.seeds.1)
}

fn name(finding: &Finding) -> String {
    format!("{} in {:?}", finding.id, finding.scenario)
}

/// Whether `only` (the variable `FINDING`) selects the finding.
fn is_selected(finding: &Finding) -> bool {
    std::env::var("FINDING").map_or(true, |only| only == finding.id)
}

/// Runs the selected findings in a state, all their seeds side by side.
fn run_all(state: State) -> Vec<(&'static Finding, Vec<(u64, Outcome)>)> {
    let selected: Vec<&Finding> = FINDINGS
        .iter()
        .filter(|f| f.state == state && is_selected(f))
        .collect();
    let runs: Vec<(&str, Scenario, u64, Outcome)> = selected
        .iter()
        .flat_map(|f| seeds(f).map(move |seed| (*f, seed)))
        .collect::<Vec<_>>()
        .into_par_iter()
        .map(|(finding, seed)| (finding.id, finding.scenario, seed, run(finding, seed)))
        .collect();
    let mut runs = runs.into_iter().peekable();
    selected
        .into_iter()
        .map(|f| {
            let own = std::iter::from_fn(|| {
                runs.next_if(|(id, scenario, ..)| (*id, *scenario) == (f.id, f.scenario))
            });
            (f, own.map(|(.., seed, outcome)| (seed, outcome)).collect())
        })
        .collect()
}

#[test]
fn open_findings_are_found_unaided() {
    let mut unseen = Vec::new();
    for (finding, runs) in run_all(State::Open) {
        let violations = runs
            .iter()
            .filter_map(|(seed, outcome)| Some((seed, outcome.as_ref().err()?)));
        let shown = violations
            .clone()
            .find(|(_, (violation, _))| finding.is_shown_by(violation));
        match shown {
            Some((seed, (violation, _))) => println!("{} seed {seed}: {violation}", name(finding)),
            None => unseen.push(format!(
                "{}: no seed violates {:?}; if it is fixed, its row is to be closed. Other violations: {:#?}",
                name(finding),
                finding.violates,
                violations
                    .map(|(_, (violation, _))| violation)
                    .collect::<Vec<_>>()
            )),
        }
    }
    assert!(unseen.is_empty(), "{}", unseen.join("\n"));
}

#[test]
fn closed_findings_stay_closed() {
    let mut failures = Vec::new();
    for (finding, runs) in run_all(State::Closed) {
        let open: Vec<&Finding> = FINDINGS
            .iter()
            .filter(|f| f.scenario == finding.scenario && f.state == State::Open)
            .collect();
        let mut reached = BTreeSet::new();
        for (_, outcome) in runs {
            match outcome {
                Ok(counts) => reached.extend(counts.into_keys()),
                Err((violation, _)) if open.iter().any(|f| f.is_shown_by(&violation)) => {}
                Err((_, details)) => failures.push(details),
            }
        }
        for subject in finding.reaches.iter().filter(|s| !reached.contains(**s)) {
            failures.push(format!(
                "{}: no run has {subject:?}, so that none can show the finding",
                name(finding)
            ));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn every_scenario_shows_a_finding() {
    for scenario in Scenario::ALL {
        assert!(
            FINDINGS.iter().any(|f| f.scenario == scenario),
            "{scenario:?} is in no row of the table"
        );
    }
}
