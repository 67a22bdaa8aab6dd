//! What the scheduler counts for a pod, by the rules of Kubernetes (`k8s.io/component-helpers/resource`, `PodRequests`),
//! so that what is offered is what the scheduler has.
//!
//! - Containers are added up. Init containers that stay (`restartPolicy: Always`) are added to them.
//! - An init container that ends runs beside those that stay and were started before it; the largest such sum counts if it
//!   is more than the containers together.
//! - Requests of the whole pod (`spec.resources`) replace CPU and memory of the containers.
//! - The overhead of the RuntimeClass comes on top.
//! - While a container that stays, or the whole pod, is resized, the largest of what is requested, allocated and in effect
//!   counts, as schedulers up to 1.36 count it. A request that the node cannot fulfil does not count. Nothing but the
//!   request counts until a kubelet reports what is in effect.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, Pod, PodSpec, PodStatus, ResourceRequirements},
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};
use serde::Deserialize;

use super::cluster::shape;
use crate::request::Shape;

type Resources = BTreeMap<String, Quantity>;

/// A Pod with the fields of Kubernetes 1.36 that count, which the types of older versions of the API lack.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(from = "PodObject")]
pub struct FullPod {
    /// The Pod.
    pub pod: Pod,
    /// What is in effect of the requests of the whole pod. `None` if its kubelet does not report it.
    in_effect: Option<ResourceRequirements>,
    /// What is allocated for the whole pod.
    allocated: Option<Resources>,
}

#[derive(Deserialize)]
struct PodObject {
    #[serde(default)]
    metadata: ObjectMeta,
    spec: Option<PodSpec>,
    status: Option<StatusObject>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StatusObject {
    resources: Option<ResourceRequirements>,
    allocated_resources: Option<Resources>,
    #[serde(flatten)]
    others: PodStatus,
}

impl From<PodObject> for FullPod {
    fn from(object: PodObject) -> Self {
        let (status, in_effect, allocated) = match object.status {
            Some(s) => (Some(s.others), s.resources, s.allocated_resources),
            None => (None, None, None),
        };
        Self {
            pod: Pod {
                metadata: object.metadata,
                spec: object.spec,
                status,
            },
            in_effect,
            allocated,
        }
    }
}

/// What the scheduler counts for a pod.
#[must_use]
pub fn pod_requests(seen: &FullPod) -> Shape {
    let pod = &seen.pod;
    let Some(spec) = &pod.spec else {
        return Shape::default();
    };
    let mut requests = of_containers(pod, spec);
    let of_pod = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    if let Some(of_pod) = of_pod {
        let state = Resize {
            specified: Some(of_pod),
            in_effect: seen.in_effect.as_ref(),
            allocated: seen.allocated.as_ref(),
        };
        let whole = state.counted(is_resize_infeasible(pod));
        if of_pod.contains_key("cpu") {
            requests.millicores = whole.millicores;
        }
        if of_pod.contains_key("memory") {
            requests.memory = whole.memory;
        }
    }
    requests.plus(&spec.overhead.as_ref().map(shape).unwrap_or_default())
}

fn of_containers(pod: &Pod, spec: &PodSpec) -> Shape {
    let infeasible = is_resize_infeasible(pod);
    let resized = |container: &Container| state(pod, container).counted(infeasible);
    let mut sum = spec
        .containers
        .iter()
        .fold(Shape::default(), |sum, container| sum.plus(&resized(container)));
    let (mut stay, mut starting) = (Shape::default(), Shape::default());
    for container in spec.init_containers.iter().flatten() {
        if container.restart_policy.as_deref() == Some("Always") {
            let requests = resized(container);
            sum = sum.plus(&requests);
            stay = stay.plus(&requests);
            starting = starting.larger(&stay);
        } else {
            let requests = specified(container).map(shape).unwrap_or_default();
            starting = starting.larger(&stay.plus(&requests));
        }
    }
    sum.larger(&starting)
}

/// The requests of a container or of a pod, which can be changed while it runs.
struct Resize<'a> {
    specified: Option<&'a Resources>,
    in_effect: Option<&'a ResourceRequirements>,
    allocated: Option<&'a Resources>,
}

impl Resize<'_> {
    fn counted(&self, infeasible: bool) -> Shape {
        let all = match self.in_effect {
            None => [self.specified, None, None],
            Some(in_effect) => [
                self.specified.filter(|_| !infeasible),
                in_effect.requests.as_ref(),
                self.allocated,
            ],
        };
        let largest = |sum: Shape, requests| sum.larger(&shape(requests));
        all.into_iter().flatten().fold(Shape::default(), largest)
    }
}

fn specified(container: &Container) -> Option<&Resources> {
    container.resources.as_ref()?.requests.as_ref()
}

fn state<'a>(pod: &'a Pod, container: &'a Container) -> Resize<'a> {
    let all = pod.status.iter().flat_map(|status| {
        let init = status.init_container_statuses.iter().flatten();
        status.container_statuses.iter().flatten().chain(init)
    });
    let status = all.into_iter().find(|status| status.name == container.name);
    Resize {
        specified: specified(container),
        in_effect: status.and_then(|s| s.resources.as_ref()),
        allocated: status.and_then(|s| s.allocated_resources.as_ref()),
    }
}

fn is_resize_infeasible(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|all| {
        all.iter()
            .any(|c| c.type_ == "PodResizePending" && c.reason.as_deref() == Some("Infeasible"))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn requests(spec: Value, status: Value) -> (u64, u64, u64) {
        let pod: FullPod = serde_json::from_value(json!({"spec": spec, "status": status})).unwrap();
        let shape = pod_requests(&pod);
        (shape.millicores, shape.memory, shape.gpus)
    }

    /// A container with requests of CPU and bytes of memory.
    fn container(name: &str, cpu: &str, memory: &str) -> Value {
        json!({"name": name, "resources": {"requests": {"cpu": cpu, "memory": memory}}})
    }

    fn stays(mut container: Value) -> Value {
        container["restartPolicy"] = json!("Always");
        container
    }

    /// The forms that `PodRequests` distinguishes, with the sums that follow from its rules.
    #[test]
    fn requests_are_counted_as_the_scheduler_counts_them() {
        let two = json!([container("a", "1", "100"), container("b", "500m", "50")]);
        let cases = [
            ("containers", json!({"containers": two}), (1500, 150, 0)),
            (
                "GPUs",
                json!({"containers": [{"name": "a", "resources": {"requests": {"nvidia.com/gpu": "2"}}}]}),
                (0, 0, 2),
            ),
            ("no requests", json!({"containers": [{"name": "a"}]}), (0, 0, 0)),
            (
                "the larger of init containers and containers, per resource",
                json!({"containers": two, "initContainers": [container("i", "3", "10"), container("j", "1", "120")]}),
                (3000, 150, 0),
            ),
            (
                "an init container that stays is added",
                json!({"containers": two, "initContainers": [stays(container("s", "1", "10"))]}),
                (2500, 160, 0),
            ),
            (
                "one that ends runs beside those that were started before it",
                json!({"containers": two, "initContainers": [
                    stays(container("s", "1", "10")), container("i", "2", "500"), stays(container("t", "2", "10"))]}),
                (4500, 510, 0),
            ),
            (
                "one that ends does not run beside those that are started after it",
                json!({"containers": [container("a", "100m", "1")], "initContainers": [
                    container("i", "2", "500"), stays(container("s", "1", "10"))]}),
                (2000, 500, 0),
            ),
            (
                "requests of the pod replace CPU and memory of its containers, and only these",
                json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "4", "memory": "9", "nvidia.com/gpu": "1"}}}],
                    "resources": {"requests": {"cpu": "2", "nvidia.com/gpu": "5"}}}),
                (2000, 9, 1),
            ),
            (
                "limits of the pod are no requests",
                json!({"containers": two, "resources": {"limits": {"cpu": "7"}}}),
                (1500, 150, 0),
            ),
            (
                "overhead comes on top, also of requests of the pod",
                json!({"containers": two, "resources": {"requests": {"cpu": "2"}},
                    "overhead": {"cpu": "250m", "memory": "7"}}),
                (2250, 157, 0),
            ),
        ];
        for (what, spec, expected) in cases {
            assert_eq!(requests(spec, json!({})), expected, "{what}");
        }
    }

    #[test]
    fn a_pod_that_is_resized_counts_with_the_largest_of_its_requests() {
        let spec =
            |cpu: &str| json!({"containers": [container("a", cpu, "100"), container("b", "1", "100")]});
        let status = |allocated: Value, actual: Value, conditions: Value| {
            json!({"conditions": conditions, "containerStatuses": [{
                "name": "a", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
                "allocatedResources": allocated, "resources": {"requests": actual}}]})
        };
        let (small, large) = (
            json!({"cpu": "1", "memory": "100"}),
            json!({"cpu": "3", "memory": "100"}),
        );
        let down = status(large.clone(), large.clone(), json!([]));
        assert_eq!(
            requests(spec("1"), down),
            (4000, 200, 0),
            "smaller, not in effect yet"
        );
        let up = status(small.clone(), small.clone(), json!([]));
        assert_eq!(
            requests(spec("3"), up.clone()),
            (4000, 200, 0),
            "larger, not allocated yet"
        );
        let both = json!({"containers": [container("a", "1", "100"), container("b", "3", "100")]});
        let mut exchange = status(large.clone(), large.clone(), json!([]));
        let mut other = exchange["containerStatuses"][0].clone();
        other["name"] = json!("b");
        other["allocatedResources"] = small.clone();
        other["resources"] = json!({"requests": small.clone()});
        exchange["containerStatuses"].as_array_mut().unwrap().push(other);
        assert_eq!(
            requests(both, exchange),
            (6000, 200, 0),
            "one smaller, the other larger"
        );
        let started = status(large, small.clone(), json!([]));
        assert_eq!(
            requests(spec("1"), started),
            (4000, 200, 0),
            "allocated, not in effect"
        );
        let refused = json!([{"type": "PodResizePending", "status": "True", "reason": "Infeasible"}]);
        let never = status(small.clone(), small, refused);
        let alone = json!({"containers": [container("a", "9", "100")]});
        assert_eq!(
            requests(alone, never),
            (1000, 100, 0),
            "the node cannot fulfil it"
        );
    }

    /// The status of a pod whose containers are not resized counts as far as schedulers read it.
    #[test]
    fn what_is_allocated_counts_only_beside_what_is_in_effect() {
        let status = |in_effect: Value| {
            json!({"initContainerStatuses": [{
                "name": "a", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
                "allocatedResources": {"cpu": "3"}, "resources": in_effect}]})
        };
        let init = |container: Value| json!({"containers": [], "initContainers": [container]});
        let one = container("a", "1", "100");
        let reported = json!({"requests": {"cpu": "2"}});
        assert_eq!(
            requests(init(stays(one.clone())), status(reported.clone())),
            (3000, 100, 0)
        );
        assert_eq!(
            requests(init(stays(one.clone())), status(json!(null))),
            (1000, 100, 0),
            "no kubelet reports what is in effect"
        );
        assert_eq!(
            requests(init(one), status(reported)),
            (1000, 100, 0),
            "it is not resized, because it ends"
        );
    }

    #[test]
    fn the_requests_of_a_whole_pod_are_resized() {
        let spec = json!({"containers": [container("a", "500m", "10")],
            "resources": {"requests": {"cpu": "1", "memory": "100"}}});
        let status = |conditions: Value| {
            json!({"resources": {"requests": {"cpu": "3", "memory": "50"}}, "allocatedResources": {"cpu": "2"},
                "phase": "Running", "conditions": conditions})
        };
        assert_eq!(requests(spec.clone(), status(json!([]))), (3000, 100, 0));
        let refused = json!([{"type": "PodResizePending", "status": "True", "reason": "Infeasible"}]);
        assert_eq!(requests(spec.clone(), status(refused)), (3000, 50, 0));
        let allocated = json!({"allocatedResources": {"cpu": "2"}});
        assert_eq!(requests(spec, allocated), (1000, 100, 0), "not in effect");
    }
}
