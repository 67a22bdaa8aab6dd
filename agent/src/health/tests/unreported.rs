//! GPUs for which NVML does not report everything.

use super::*;

#[test]
fn values_that_nvml_does_not_report_are_no_fault() {
    let mut node = node(2);
    for index in 0..2 {
        node.change(index, |gpu| {
            gpu.memory = None;
            gpu.name = String::new();
            gpu.bus = String::new();
            gpu.pci_device = 0;
        });
    }
    node.history = HealthHistory::default();
    for _ in 0..3 {
        node.observe();
    }
    assert_eq!(node.health(), [DeviceHealth::Healthy; 2]);
    assert!(node.history.confirmed_unmatched().is_empty());
}
