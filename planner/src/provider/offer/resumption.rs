//! Whether a reservation has room for its pods again after a pause, in which its room was sold to others.

use std::collections::BTreeSet;

use leasehold_crds::{GpuReservation, market::allocation::AllocationPhase};

use super::{
    cluster::pod_shape,
    supply::{Hold, NodeSeen},
};
use crate::request::Shape;

/// Room on the nodes of a reservation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Room {
    /// Each node has room for its pod, or runs it already.
    #[default]
    Free,
    /// The node with that name has not: other pods request it, or it is promised to other reservations.
    Taken(String),
}

/// Whether the room is to be read: the reservation is paused.
#[must_use]
pub fn wants_room(reservation: &GpuReservation) -> bool {
    let status = reservation.status.as_ref();
    status.is_some_and(|s| s.phase == AllocationPhase::Suspended)
}

/// The room beside what pods request and other reservations hold. `own` are nodes on which a pod of the reservation exists.
/// Whether a node that is not there can run anything is left to the scheduler.
#[must_use]
pub fn room_to_resume(
    reservation: &GpuReservation,
    nodes: &[NodeSeen],
    holds: &[Hold],
    own: &BTreeSet<&str>,
) -> Room {
    let name = reservation.metadata.name.as_deref().unwrap_or_default();
    let Some(shape) = pod_shape(reservation) else {
        return Room::Free;
    };
    let is_full = |node: &&NodeSeen| {
        let others = holds
            .iter()
            .filter(|h| h.name != name && h.nodes.contains(&node.name));
        let held = others.fold(Shape::default(), |sum, hold| sum.plus(&hold.shape));
        !shape.fits(&node.allocatable.without(&node.requested.plus(&held)))
    };
    let wanted = reservation
        .spec
        .nodes
        .iter()
        .filter(|n| !own.contains(n.as_str()));
    let mut seen = wanted.filter_map(|name| nodes.iter().find(|node| node.name == *name));
    seen.find(is_full)
        .map_or(Room::Free, |node| Room::Taken(node.name.clone()))
}

#[cfg(test)]
mod tests {
    use leasehold_crds::provider::reservation::GpuReservationSpec;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_reservation_resumes_beside_what_was_promised_to_others() {
        let mut object = GpuReservation::new("lease-a", GpuReservationSpec::default());
        object.spec.nodes = vec!["n1".into(), "n2".into()];
        let shape = json!({"cpu": "1", "memory": "1Gi", "ephemeralStorage": "1Gi", "gpus": 2});
        object.spec.allocation.per_node = serde_json::from_value(shape).unwrap();
        let gpus = |gpus: u64| Shape {
            gpus,
            millicores: gpus * 1_000,
            memory: gpus << 30,
            scratch: gpus << 30,
        };
        let node = |name: &str, requested: u64| NodeSeen {
            name: name.into(),
            allocatable: gpus(4),
            requested: gpus(requested),
            ..NodeSeen::default()
        };
        let hold = |name: &str, shape: u64| Hold {
            name: name.into(),
            shape: gpus(shape),
            nodes: vec!["n2".into()],
        };
        let taken = || Room::Taken("n2".into());
        let room = |requested: u64, holds: &[Hold], own: &[&str]| {
            let nodes = [node("n1", 0), node("n2", requested)];
            room_to_resume(&object, &nodes, holds, &own.iter().copied().collect())
        };
        assert_eq!(room(2, &[], &[]), Room::Free);
        assert_eq!(room(3, &[], &[]), taken(), "another pod requests it");
        assert_eq!(
            room(2, &[hold("lease-b", 1)], &[]),
            taken(),
            "it is promised to another"
        );
        assert_eq!(room(2, &[hold("lease-a", 2)], &[]), Room::Free, "it is its own");
        assert_eq!(
            room(4, &[hold("lease-b", 1)], &["n2"]),
            Room::Free,
            "its pod is there"
        );
        assert_eq!(room_to_resume(&object, &[], &[], &BTreeSet::new()), Room::Free);
    }
}
