//! Runs each scenario, and compares the violated invariants with the table of findings: an open finding is shown by at
//! least one of its seeds, and a closed one by none.

use leasehold_simulator::{
    Sim,
    scenario::{FINDINGS, Finding, Scenario, State},
};

/// Runs one seed. The error is the violated invariant, and what the run was like.
fn run(finding: &Finding, seed: u64) -> Result<(), (String, String)> {
    let mut sim = Sim::with(seed, [finding.scenario].into());
    sim.run(finding.steps).map_err(|violation| {
        let details = format!("{}\nseed {seed}: {violation}", sim.details());
        (violation, details)
    })
}

fn seeds(finding: &Finding) -> std::ops::Range<u64> {
    finding.seeds.0..finding.seeds.0 + finding.seeds.1
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
            Ok(()) => false,
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
        for seed in seeds(finding) {
            if let Err((violation, details)) = run(finding, seed)
                && !open.iter().any(|f| f.is_shown_by(&violation))
            {
                panic!("{}:\n{details}", name(finding));
            }
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
