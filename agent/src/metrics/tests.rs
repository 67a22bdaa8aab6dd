//! The metrics that Prometheus scrapes.

use super::*;
use crate::sources::facts::{FastFacts, Memory};

fn gpu() -> GpuFacts {
    GpuFacts {
        index: 2,
        minor: Some(3),
        uuid: "GPU-a".to_owned(),
        name: "Tesla T4".to_owned(),
        bus: "00000000:18:00.0".to_owned(),
        memory: Some(Memory {
            total: 16 << 30,
            reserved: 0,
            used: 3 << 20,
            free: 5 << 20,
        }),
        fast: FastFacts {
            gpu_percent: Some(97),
            power_milliwatts: Some(70_500),
            energy_millijoules: Some(1 << 40),
            ..FastFacts::default()
        },
        ..GpuFacts::default()
    }
}

fn read(gpus: Vec<GpuFacts>) -> Outcome {
    let slots = gpus.into_iter().map(|gpu| Slot::Read(Box::new(gpu))).collect();
    Outcome::Read(Reading {
        slots,
        ..Reading::default()
    })
}

const LABELS: &str = r#"gpu="2",UUID="GPU-a",pci_bus_id="00000000:18:00.0",device="nvidia3",modelName="Tesla T4",Hostname="n1""#;

#[test]
fn names_and_labels_are_those_of_dcgm_exporter() {
    let mut metrics = Metrics::new();
    let agent = AgentMetrics::register(&mut metrics, "n1", GpuSeries::Dcgm);
    agent.read(&read(vec![gpu()]), &[]);
    let text = metrics.render().unwrap();
    for line in [
        format!("DCGM_FI_DEV_GPU_UTIL{{{LABELS}}} 97.0"),
        format!("DCGM_FI_DEV_POWER_USAGE{{{LABELS}}} 70.5"),
        format!("DCGM_FI_DEV_FB_USED{{{LABELS}}} 3.0"),
        format!("DCGM_FI_DEV_FB_FREE{{{LABELS}}} 5.0"),
        format!("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{{LABELS}}} 1099511627776.0"),
        format!("DCGM_FI_DEV_XID_ERRORS{{{LABELS}}} 0.0"),
        r#"leasehold_agent_readings_total{outcome="Read"} 1"#.to_owned(),
        r#"leasehold_agent_readings_total{outcome="Hung"} 0"#.to_owned(),
    ] {
        assert!(text.lines().any(|have| have == line), "{line}\n{text}");
    }
    assert!(
        !text.contains("DCGM_FI_DEV_GPU_TEMP{"),
        "a value that the card does not report has no sample"
    );
}

#[test]
fn the_last_xid_is_kept_and_an_unavailable_driver_has_no_stale_values() {
    let mut metrics = Metrics::new();
    let agent = AgentMetrics::register(&mut metrics, "n1", GpuSeries::Dcgm);
    agent.read(
        &read(vec![gpu()]),
        &[XidEvent {
            uuid: "GPU-a".to_owned(),
            xid: 31,
        }],
    );
    agent.read(&read(vec![gpu()]), &[]);
    assert!(
        metrics
            .render()
            .unwrap()
            .contains(&format!("DCGM_FI_DEV_XID_ERRORS{{{LABELS}}} 31.0"))
    );
    agent.read(&Outcome::Hung, &[]);
    let text = metrics.render().unwrap();
    assert!(!text.contains("GPU-a"), "{text}");
    assert!(text.contains(r#"leasehold_agent_readings_total{outcome="Hung"} 1"#));
}

#[test]
fn beside_dcgm_exporter_the_agent_serves_only_its_own_series() {
    let mut metrics = Metrics::new();
    let agent = AgentMetrics::register(&mut metrics, "n1", GpuSeries::None);
    agent.read(&read(vec![gpu()]), &[]);
    let text = metrics.render().unwrap();
    assert!(!text.contains("DCGM_"), "{text}");
    assert!(text.contains(r#"leasehold_agent_readings_total{outcome="Read"} 1"#));
}
