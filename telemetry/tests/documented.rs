//! The documentation lists exactly the metrics that the operators export.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

use leasehold_telemetry::Metrics;
use leasehold_telemetry::metrics::{Operator, Role, reference};

#[test]
fn every_metric_of_both_roles_is_documented_as_it_is() {
    let path = leasehold_testtools::root().join("docs/operate/metrics.md");
    let documented = std::fs::read_to_string(path).unwrap();
    for (role, title) in [
        (Role::Market, "## Operator, role market\n\n"),
        (Role::Provider, "## Operator, role provider\n\n"),
    ] {
        let mut metrics = Metrics::new();
        drop(Operator::register(&mut metrics, role));
        let section = documented
            .split(title)
            .nth(1)
            .unwrap()
            .split("\n## ")
            .next()
            .unwrap();
        assert_eq!(
            section.trim(),
            reference::markdown(&metrics).unwrap().trim(),
            "docs/operate/metrics.md is stale: run `cargo xtask codegen`"
        );
    }
}
