//! Allocation of a node's GPUs to pods: in order of arrival, until the pod has ended. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// A pod that is scheduled to the node and has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodRequest {
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) pod: String,
    /// Number of GPUs that each container requests, by the container's name.
    pub(crate) containers: Vec<(String, usize)>,
}

/// GPUs of a pod, by container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) containers: Vec<(String, Vec<String>)>,
}

/// Allocations of one node.
#[derive(Debug, Default)]
pub(crate) struct Allocations(BTreeMap<String, Held>);

impl Allocations {
    /// Frees the GPUs of pods that are gone, and allocates to the others, the oldest first. A pod gets all that it
    /// requests or nothing, as a kubelet would not admit it otherwise.
    pub(crate) fn settle(&mut self, pods: &[PodRequest], gpus: &[String]) {
        self.0.retain(|uid, _| pods.iter().any(|pod| pod.uid == *uid));
        for request in pods {
            if self.0.contains_key(&request.uid) {
                continue;
            }
            let taken: BTreeSet<&String> = self
                .0
                .values()
                .flat_map(|h| &h.containers)
                .flat_map(|c| &c.1)
                .collect();
            let mut free = gpus.iter().filter(|gpu| !taken.contains(gpu)).cloned();
            let containers: Vec<(String, Vec<String>)> = request
                .containers
                .iter()
                .map(|(name, count)| (name.clone(), free.by_ref().take(*count).collect()))
                .collect();
            let whole = containers
                .iter()
                .zip(&request.containers)
                .all(|((_, got), (_, requested))| got.len() == *requested);
            if whole {
                let held = Held {
                    namespace: request.namespace.clone(),
                    pod: request.pod.clone(),
                    containers,
                };
                self.0.insert(request.uid.clone(), held);
            }
        }
    }

    pub(crate) fn held(&self) -> impl Iterator<Item = &Held> {
        self.0.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uid: &str, gpus: usize) -> PodRequest {
        PodRequest {
            uid: uid.into(),
            namespace: "n".into(),
            pod: uid.into(),
            containers: vec![("main".into(), gpus)],
        }
    }

    fn ids(allocations: &Allocations, pod: &str) -> Vec<String> {
        let held = allocations.held().find(|h| h.pod == pod);
        held.map(|h| h.containers[0].1.clone()).unwrap_or_default()
    }

    #[test]
    fn no_gpu_is_allocated_twice_and_each_is_freed() {
        let gpus: Vec<String> = ["a", "b", "c"].map(String::from).into();
        let mut allocations = Allocations::default();
        allocations.settle(
            &[request("one", 2), request("two", 2), request("three", 1)],
            &gpus,
        );
        assert_eq!(ids(&allocations, "one"), ["a", "b"]);
        assert_eq!(
            ids(&allocations, "two"),
            [""; 0],
            "two requested, one free: nothing"
        );
        assert_eq!(ids(&allocations, "three"), ["c"]);
        allocations.settle(&[request("two", 2), request("three", 1)], &gpus);
        assert_eq!(ids(&allocations, "two"), ["a", "b"]);
        assert_eq!(ids(&allocations, "three"), ["c"], "allocations do not change");
    }
}
