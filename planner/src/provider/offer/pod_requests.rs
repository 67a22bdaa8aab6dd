//! What the scheduler counts for a pod, by the rules of Kubernetes (`k8s.io/component-helpers/resource`, `PodRequests`),
//! so that what is offered is what the scheduler has.
//!
//! - Containers are added up. Init containers that stay (`restartPolicy: Always`) are added to them.
//! - An init container that ends runs beside those that stay and were started before it; the largest such sum counts if it
//!   is more than the containers together.
//! - Requests of the whole pod (`spec.resources`) replace CPU and memory of the containers.
//! - The overhead of the RuntimeClass comes on top.
//! - While a container is resized, the largest of what is requested, allocated and in effect counts, for each container,
//!   as schedulers up to 1.36 count it. A request that the node cannot fulfil does not count.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodSpec};

use super::cluster::shape;
use crate::request::Shape;

/// What the scheduler counts for a pod.
#[must_use]
pub fn pod_requests(pod: &Pod) -> Shape {
    let Some(spec) = &pod.spec else {
        return Shape::default();
    };
    let mut requests = of_containers(pod, spec);
    let of_pod = spec.resources.as_ref().and_then(|r| r.requests.as_ref());
    if let Some(of_pod) = of_pod {
        let whole = shape(of_pod);
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
    let of = |container: &Container| requests_of(container, status(pod, &container.name), infeasible);
    let mut sum = spec
        .containers
        .iter()
        .fold(Shape::default(), |sum, container| sum.plus(&of(container)));
    let (mut stay, mut starting) = (Shape::default(), Shape::default());
    for container in spec.init_containers.iter().flatten() {
        let requests = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sum = sum.plus(&requests);
            stay = stay.plus(&requests);
            starting = starting.larger(&stay);
        } else {
            starting = starting.larger(&stay.plus(&requests));
        }
    }
    sum.larger(&starting)
}

fn requests_of(container: &Container, status: Option<&ContainerStatus>, infeasible: bool) -> Shape {
    let specified = container.resources.as_ref().and_then(|r| r.requests.as_ref());
    let allocated = status.and_then(|s| s.allocated_resources.as_ref());
    let actual = status.and_then(|s| s.resources.as_ref()?.requests.as_ref());
    // Schedulers count a request that the node cannot fulfil as long as nothing is reported to be in effect.
    let counted = if infeasible && actual.is_some() {
        [allocated, actual, None]
    } else {
        [allocated, actual, specified]
    };
    let largest = |sum: Shape, requests| sum.larger(&shape(requests));
    counted.into_iter().flatten().fold(Shape::default(), largest)
}

fn status<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let all = status.container_statuses.iter().flatten();
    all.chain(status.init_container_statuses.iter().flatten())
        .find(|status| status.name == name)
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
        let pod: Pod = serde_json::from_value(json!({"spec": spec, "status": status})).unwrap();
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
}
