//! Memory that is in use on a GPU that no pod holds: what a process left behind, or a process that the driver does not
//! list. The next tenant would run out of memory. Pure.

use crate::{
    health::foreign_processes::holds,
    sources::facts::{GpuFacts, Source},
    sources::kubelet::Allocation,
};

/// Bytes that may be in use on a GPU without a holder, beside what the driver reserves: contexts of monitoring and of
/// the driver's own services.
const IN_USE_BYTES_MAX: u64 = 1 << 30;

/// Finds memory in use without a holder. NVML counts what the driver reserves separately from what is used.
pub(crate) fn find_unheld_memory<'a>(
    gpus: impl Iterator<Item = &'a GpuFacts>,
    kubelet: &Source<Allocation>,
) -> Source<Vec<String>> {
    kubelet.as_ref().map(|allocation| {
        gpus.filter(|gpu| !allocation.holders.iter().any(|holder| holds(holder, gpu)))
            .filter_map(|gpu| {
                let used = gpu.memory?.used;
                (used > IN_USE_BYTES_MAX).then(|| {
                    format!(
                        "{} MiB of {} are in use, and no pod holds it",
                        used >> 20,
                        gpu.uuid
                    )
                })
            })
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::sources::{facts::Memory, kubelet::Holder};

    fn gpu(used_gib: u64) -> GpuFacts {
        GpuFacts {
            uuid: "GPU-a".to_owned(),
            memory: Some(Memory {
                used: used_gib << 30,
                ..Memory::default()
            }),
            ..GpuFacts::default()
        }
    }

    fn held(id: &str) -> Source<Allocation> {
        Source::Reported(Allocation {
            holders: vec![Holder {
                namespace: "team-a".to_owned(),
                pod: "train-0".to_owned(),
                ids: BTreeSet::from([id.to_owned()]),
            }],
            ..Allocation::default()
        })
    }

    fn found(gpu: &GpuFacts, kubelet: &Source<Allocation>) -> Source<Vec<String>> {
        find_unheld_memory(std::iter::once(gpu), kubelet)
    }

    #[test]
    fn memory_in_use_counts_only_on_a_gpu_that_nobody_holds() {
        let message = "71680 MiB of GPU-a are in use, and no pod holds it".to_owned();
        assert_eq!(found(&gpu(70), &held("GPU-b")), Source::Reported(vec![message]));
        assert_eq!(found(&gpu(70), &held("GPU-a")), Source::Reported(Vec::new()));
        assert_eq!(found(&gpu(1), &held("GPU-b")), Source::Reported(Vec::new()));
        let untold = GpuFacts {
            memory: None,
            ..gpu(70)
        };
        assert_eq!(found(&untold, &held("GPU-b")), Source::Reported(Vec::new()));
        let away = Source::Unavailable("away".to_owned());
        assert_eq!(found(&gpu(70), &away), Source::Unavailable("away".to_owned()));
    }
}
