//! The fields of leases and allocations that a market keeps in memory, thousands of each: those that its decisions
//! read, and those that it must repeat when it writes.

use leasehold_crds::{ANNOTATION_ABANDON, ANNOTATION_KNOWN, GpuAllocation, GpuLease};

use super::reads::has_finalizer;

/// Drops a lease's labels, and all annotations but the two that are used. The annotation that marks a known lease is
/// not needed while it has our finalizer.
pub fn trim_lease(lease: &mut GpuLease) {
    let held = has_finalizer(lease);
    lease.metadata.labels = None;
    if let Some(annotations) = &mut lease.metadata.annotations {
        annotations.retain(|key, _| key == ANNOTATION_ABANDON || key == ANNOTATION_KNOWN && !held);
    }
}

/// Drops what the lease contains too (workload, storage, subjects), labels, annotations, and conditions that are True.
pub fn trim_allocation(allocation: &mut GpuAllocation) {
    allocation.metadata.labels = None;
    allocation.metadata.annotations = None;
    let spec = &mut allocation.spec;
    (spec.workload, spec.storage, spec.subjects) = Default::default();
    if let Some(status) = &mut allocation.status {
        status.conditions.retain(|c| c.status != "True");
    }
}

#[cfg(test)]
mod tests {
    use leasehold_crds::{FINALIZER_MARKET, lease::GpuLeaseSpec};

    use super::*;

    #[test]
    fn a_lease_keeps_what_it_is_known_by() {
        let mut lease = GpuLease::new("box", GpuLeaseSpec::default());
        let marks = [
            ANNOTATION_KNOWN,
            ANNOTATION_ABANDON,
            "argocd.argoproj.io/tracking-id",
        ];
        let marks = marks.map(|key| (key.to_owned(), "true".to_owned()));
        lease.metadata.annotations = Some(marks.into());
        trim_lease(&mut lease);
        let kept = |lease: &GpuLease| -> Vec<String> {
            let annotations = lease.metadata.annotations.iter().flatten();
            annotations.map(|(key, _)| key.clone()).collect()
        };
        let mut both = vec![ANNOTATION_KNOWN.to_owned(), ANNOTATION_ABANDON.to_owned()];
        both.sort();
        assert_eq!(kept(&lease), both);
        lease.metadata.finalizers = Some(vec![FINALIZER_MARKET.into()]);
        trim_lease(&mut lease);
        assert_eq!(kept(&lease), [ANNOTATION_ABANDON]);
    }
}
