//! Runs each scenario, and compares the violated invariants with the table of findings: an open finding is shown by at
//! least one of its seeds, and a closed one by none.

use std::collections::{BTreeMap, BTreeSet};

use leasehold_simulator::{
    Sim,
    scenario::{FINDINGS, Finding, Scenario, State},
};

/// Runs one seed, and returns how often things happened. The error is the violated invariant, and what the run was like.
fn run(finding: &Finding, seed: u64) -> Result<BTreeMap<String, u64>, (String, String)> {
    let mut sim = Sim::with(seed, [finding.scenario].into());
    match sim.run(finding.steps) {
        Ok(()) => Ok(sim.counts()),
        Err(violation) => {
            let details = format!("{}\nseed {seed}: {violation}", sim.details());
            Err((violation, details))
        }
    }
}

/// The seeds of a finding; the variable `SEEDS` sets another number of them.
fn seeds(finding: &Finding) -> std::ops::Range<u64> {
    let count = std::env::var("SEEDS").ok().and_then(|n| n.parse().ok());
    finding.seeds.0..finding.seeds.0 + count.unwrap_or(finding.seeds.1)
}

fn name(finding: &Finding) -> String {
    format!("{} in {:?}", finding.id, finding.scenario)
}

/// Whether `only` (the variable `FINDING`) selects the finding.
fn is_selected(finding: &Finding) -> bool {
    std::env::var("FINDING").map_or(true, |only| only == finding.id)
}

#[test]
fn open_findings_are_found_unaided() {
    let mut unseen = Vec::new();
    for finding in FINDINGS
        .iter()
        .filter(|f| f.state == State::Open && is_selected(f))
    {
        let mut others = Vec::new();
        let shown = seeds(finding).find(|seed| match run(finding, *seed) {
            Err((violation, _)) if finding.is_shown_by(&violation) => {
                println!("{} seed {seed}: {violation}", name(finding));
                true
            }
            Err((_, details)) => {
                others.push(details);
                false
            }
            Ok(_) => false,
        });
        if shown.is_none() {
            let last = |d: &String| d.lines().last().unwrap_or_default().to_owned();
            let others: Vec<String> = others.iter().map(last).collect();
            unseen.push(format!(
                "{}: no seed violates {:?}; if it is fixed, its row is to be closed. Other violations: {others:#?}",
                name(finding),
                finding.violates
            ));
        }
    }
    assert!(unseen.is_empty(), "{}", unseen.join("\n"));
}

#[test]
fn closed_findings_stay_closed() {
    for finding in FINDINGS
        .iter()
        .filter(|f| f.state == State::Closed && is_selected(f))
    {
        let open: Vec<&Finding> = FINDINGS
            .iter()
            .filter(|f| f.scenario == finding.scenario && f.state == State::Open)
            .collect();
        let mut reached = BTreeSet::new();
        for seed in seeds(finding) {
            match run(finding, seed) {
                Ok(counts) => reached.extend(counts.into_keys()),
                Err((violation, details)) => {
                    let is_open = open.iter().any(|f| f.is_shown_by(&violation));
                    assert!(is_open, "{}:\n{details}", name(finding));
                }
            }
        }
        for subject in finding.reaches {
            assert!(
                reached.contains(*subject),
                "{}: no run has {subject:?}, so that none can show the finding",
                name(finding)
            );
        }
    }
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
