//! Processes that compute on a GPU which their pod does not hold. Pure.

use crate::{
    sources::facts::{GpuFacts, Source},
    sources::kubelet::{Allocation, Holder},
    sources::processes::Owner,
};

/// Finds foreign processes. Returns `Unavailable` if a source that is needed to decide is unavailable.
pub(crate) fn find_foreign_processes<'a>(
    gpus: impl Iterator<Item = &'a GpuFacts>,
    kubelet: &Source<Allocation>,
    owner: impl Fn(u32) -> Source<Owner>,
) -> Source<Vec<String>> {
    let mut found = Vec::new();
    for gpu in gpus {
        let Some(processes) = &gpu.processes else { continue };
        for process in processes {
            let allocation = match kubelet {
                Source::Reported(allocation) => allocation,
                Source::Unavailable(why) => return Source::Unavailable(why.clone()),
                Source::Absent => {
                    return Source::Unavailable(
                        "there is no kubelet that reports which pod holds which GPU".to_owned(),
                    );
                }
            };
            let owner = match owner(process.pid) {
                Source::Reported(owner) => owner,
                Source::Unavailable(why) => return Source::Unavailable(why),
                Source::Absent => return Source::Absent,
            };
            let holders: Vec<&Holder> = allocation
                .holders
                .iter()
                .filter(|holder| holds(holder, gpu))
                .collect();
            if let Some(whose) = foreign_owner(&owner, &holders) {
                found.push(format!("process {} of {whose} on {}", process.pid, gpu.uuid));
            }
        }
    }
    Source::Reported(found)
}

pub(super) fn holds(holder: &Holder, gpu: &GpuFacts) -> bool {
    holder.ids.contains(&gpu.uuid) || gpu.slices.iter().any(|slice| holder.ids.contains(&slice.uuid))
}

/// Describes the owner of the process, unless the process belongs to a holder.
fn foreign_owner(owner: &Owner, holders: &[&Holder]) -> Option<String> {
    match owner {
        Owner::Gone => None,
        Owner::Host => Some("the host".to_owned()),
        // The name of this pod is unknown, so it can be one of the holders. It is foreign only if the GPU has no
        // holder.
        Owner::UnknownPod(uid) => holders.is_empty().then(|| format!("the pod with uid {uid}")),
        Owner::Pod(pod) => {
            let own = holders
                .iter()
                .any(|holder| holder.namespace == pod.namespace && holder.pod == pod.name);
            (!own).then(|| format!("the pod {}/{}", pod.namespace, pod.name))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::sources::{facts::GpuProcess, processes::PodName};

    fn gpu(pids: &[u32]) -> GpuFacts {
        GpuFacts {
            uuid: "GPU-a".to_owned(),
            processes: Some(pids.iter().map(|pid| GpuProcess { pid: *pid }).collect()),
            ..GpuFacts::default()
        }
    }

    fn kubelet(holders: &[(&str, &str)]) -> Source<Allocation> {
        let holders = holders
            .iter()
            .map(|(pod, id)| Holder {
                namespace: "team-a".to_owned(),
                pod: (*pod).to_owned(),
                ids: BTreeSet::from([(*id).to_owned()]),
            })
            .collect();
        Source::Reported(Allocation {
            holders,
            ..Allocation::default()
        })
    }

    fn found(pids: &[u32], holders: &[(&str, &str)], owner: &Owner) -> Vec<String> {
        let gpus = [gpu(pids)];
        match find_foreign_processes(gpus.iter(), &kubelet(holders), |_| {
            Source::Reported(owner.clone())
        }) {
            Source::Reported(found) => found,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_holders_may_compute_on_a_gpu() {
        let pod = |name: &str| {
            Owner::Pod(PodName {
                namespace: "team-a".to_owned(),
                name: name.to_owned(),
            })
        };
        let held = [("train-0", "GPU-a")];
        assert!(found(&[7], &held, &pod("train-0")).is_empty());
        assert_eq!(
            found(&[7], &held, &pod("miner")),
            ["process 7 of the pod team-a/miner on GPU-a"]
        );
        assert_eq!(
            found(&[7], &held, &Owner::Host),
            ["process 7 of the host on GPU-a"]
        );
        assert!(found(&[7], &held, &Owner::Gone).is_empty());
        assert!(found(&[7], &held, &Owner::UnknownPod("u".to_owned())).is_empty());
        assert_eq!(found(&[7], &[], &Owner::UnknownPod("u".to_owned())).len(), 1);
        assert_eq!(
            found(&[7], &[("train-0", "GPU-b")], &pod("train-0")).len(),
            1,
            "holder of another GPU"
        );
    }

    #[test]
    fn a_foreign_process_is_found_only_if_the_sources_are_available() {
        let gpus = [gpu(&[7])];
        let silent = Source::Unavailable("away".to_owned());
        assert!(matches!(
            find_foreign_processes(gpus.iter(), &silent, |_| Source::Reported(Owner::Host)),
            Source::Unavailable(_)
        ));
        let idle = [gpu(&[])];
        assert_eq!(
            find_foreign_processes(idle.iter(), &silent, |_| Source::Reported(Owner::Host)),
            Source::Reported(Vec::new())
        );
    }
}
