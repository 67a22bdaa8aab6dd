//! The documentation lists exactly the metrics that the operators, the connector and the gateway export.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

use leasehold_telemetry::Metrics;
use leasehold_telemetry::metrics::{Connector, Gateway, Operator, Role, reference};

/// Registers the metrics of a binary.
type Register = fn(&mut Metrics);

#[test]
fn every_metric_is_documented_as_it_is() {
    let path = leasehold_testtools::root().join("docs/operate/metrics.md");
    let documented = std::fs::read_to_string(path).unwrap();
    let register: [(Register, &str); 4] = [
        (
            |metrics| drop(Operator::register(metrics, Role::Market)),
            "## Operator, role market\n\n",
        ),
        (
            |metrics| drop(Operator::register(metrics, Role::Provider)),
            "## Operator, role provider\n\n",
        ),
        (|metrics| drop(Connector::register(metrics)), "## Connector\n\n"),
        (|metrics| drop(Gateway::register(metrics)), "## Gateway\n\n"),
    ];
    for (register, title) in register {
        let mut metrics = Metrics::new();
        register(&mut metrics);
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
