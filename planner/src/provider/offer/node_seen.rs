//! A node as its Node and its pods show it.

use k8s_openapi::api::core::v1::Node;
use leasehold_crds::shared::quantity;

use super::{
    cluster::{architecture, handlers, is_schedulable, shape, sharing, slice_resource, software, taints},
    supply::{GpusSeen, NodeSeen},
};
use crate::request::Shape;

/// A node as it is seen. `requested` are the requests of the pods that are bound to it and have not ended, one for each pod;
/// `gpus` is what its agent reports.
#[must_use]
pub fn node_seen(
    node: &Node,
    requested: impl IntoIterator<Item = Shape>,
    gpus: Option<GpusSeen>,
) -> NodeSeen {
    let software = gpus.as_ref().and_then(|gpus| software(node, &gpus.driver));
    let allocatable = node.status.as_ref().and_then(|s| s.allocatable.as_ref());
    let (mut sum, mut pods) = (Shape::default(), 0_u64);
    for requests in requested {
        (sum, pods) = (sum.plus(&requests), pods + 1);
    }
    let pods_max = allocatable.and_then(|all| all.get("pods"));
    let pods_max = pods_max.map_or(0, |q| quantity::bytes(&q.0).unwrap_or(0));
    NodeSeen {
        name: node.metadata.name.clone().unwrap_or_default(),
        labels: node.metadata.labels.clone().unwrap_or_default(),
        schedulable: is_schedulable(node),
        taints: taints(node),
        architecture: architecture(node),
        slice_resource: slice_resource(node),
        sharing: sharing(node),
        allocatable: allocatable.map(shape).unwrap_or_default(),
        requested: sum,
        pods_free: pods_max.saturating_sub(pods),
        gpus,
        handlers: handlers(node),
        software,
    }
}
