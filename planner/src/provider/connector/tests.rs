//! What a gateway may ask for, and what a hostile one does.

use leasehold_crds::{market::allocation::AllocationPhase, provider::reservation::GpuReservationStatus};
use proptest::prelude::*;
use serde_json::json;

use super::*;

const NAMESPACE: &str = "provider-rhine-west";
const UID: &str = "7f1c";

/// A reservation of the ranks 2 and 3 of a lease with two ports, which serves.
fn reservation() -> GpuReservation {
    let mut reservation = GpuReservation::default();
    reservation.metadata.name = Some("lease-a-1".into());
    reservation.spec.allocation_namespace = NAMESPACE.into();
    reservation.spec.hosting.exposure = Exposure::Tunnel;
    let allocation = &mut reservation.spec.allocation;
    allocation.lease.uid = UID.into();
    (allocation.first_rank, allocation.nodes, allocation.round) = (2, 2, 1);
    let ports = json!([{"name": "http", "port": 8000}, {"name": "grpc", "port": 9000}]);
    let workload = json!({"service": {"image": "i", "ports": ports}});
    allocation.workload = serde_json::from_value(workload).unwrap();
    reservation.status = Some(GpuReservationStatus {
        phase: AllocationPhase::Active,
        ..GpuReservationStatus::default()
    });
    reservation
}

/// The same with a job that keeps its results.
fn job() -> GpuReservation {
    let mut job = reservation();
    let output = json!({"path": "/data/out", "recipients": []});
    let workload = json!({"job": {"image": "i", "output": output}});
    job.spec.allocation.workload = serde_json::from_value(workload).unwrap();
    job
}

fn with_phase(phase: AllocationPhase, reservation: GpuReservation) -> GpuReservation {
    let status = reservation.status.clone().unwrap_or_default();
    GpuReservation {
        status: Some(GpuReservationStatus { phase, ..status }),
        ..reservation
    }
}

fn request(rank: i64, port: u16) -> StreamRequest {
    StreamRequest {
        lease_uid: UID.into(),
        rank,
        port,
    }
}

fn asked(reservations: &[GpuReservation], request: &StreamRequest) -> Result<String, Refusal> {
    target(reservations, request, NAMESPACE).map(|t| format!("{}:{}", t.host, t.port))
}

fn at(address: &str) -> Result<String, Refusal> {
    Ok(address.to_owned())
}

#[test]
fn a_stream_leads_to_the_service_of_its_node() {
    let reservations = [reservation()];
    let address = asked(&reservations, &request(2, 8000));
    assert_eq!(address, at("lease-0.lease-a-1.svc:8000"));
    let address = asked(&reservations, &request(3, 9000));
    assert_eq!(address, at("lease-1.lease-a-1.svc:9000"));
}

#[test]
fn a_lease_of_another_market_or_provider_is_not_there() {
    let mut other = reservation();
    for namespace in ["provider-elbe", "provider-rhine-west2", ""] {
        other.spec.allocation_namespace = namespace.into();
        let refused = asked(std::slice::from_ref(&other), &request(2, 8000));
        assert_eq!(refused, Err(Refusal::NoSuchLease));
    }
    assert_eq!(asked(&[], &request(2, 8000)), Err(Refusal::NoSuchLease));
    // A reservation without a UID belongs to no request.
    let mut nameless = reservation();
    nameless.spec.allocation.lease.uid = String::new();
    for lease_uid in ["", "7f1", "7f1c ", "*"] {
        let request = StreamRequest {
            lease_uid: lease_uid.into(),
            ..request(2, 8000)
        };
        let refused = asked(&[reservation(), nameless.clone()], &request);
        assert_eq!(refused, Err(Refusal::NoSuchLease), "{lease_uid}");
    }
}

#[test]
fn only_a_declared_port_is_reached() {
    // The agent's, the kubelet's, the API server's, SSH, that of results, and none.
    for port in [9400, 10_250, 6443, 22, RESULTS_PORT, 0, u16::MAX] {
        let refused = asked(&[reservation()], &request(2, port));
        assert_eq!(refused, Err(Refusal::NotDeclared), "{port}");
    }
}

#[test]
fn only_ranks_of_the_reservation_are_reached() {
    for rank in [i64::MIN, -1, 0, 1, 4, i64::MAX] {
        let refused = asked(&[reservation()], &request(rank, 8000));
        assert_eq!(refused, Err(Refusal::NoSuchRank), "{rank}");
    }
    let mut first = reservation();
    first.metadata.name = Some("lease-a-0".into());
    first.spec.allocation.first_rank = 0;
    let address = asked(&[reservation(), first], &request(1, 8000));
    assert_eq!(address, at("lease-1.lease-a-0.svc:8000"), "of two legs, its own");
}

#[test]
fn what_is_exposed_in_another_way_is_not_reached() {
    for exposure in [Exposure::NodePort, Exposure::LoadBalancer] {
        let mut other = reservation();
        other.spec.hosting.exposure = exposure;
        assert_eq!(asked(&[other], &request(2, 8000)), Err(Refusal::NotTunnelled));
    }
}

#[test]
fn only_what_runs_is_reached() {
    for &phase in AllocationPhase::ALL {
        let expected = match phase {
            AllocationPhase::Provisioning | AllocationPhase::Active => at("lease-0.lease-a-1.svc:8000"),
            _ => Err(Refusal::NotRunning),
        };
        let reservations = [with_phase(phase, reservation())];
        assert_eq!(asked(&reservations, &request(2, 8000)), expected, "{phase}");
    }
    let mut new = reservation();
    new.status = None;
    assert_eq!(asked(&[new], &request(2, 8000)), Err(Refusal::NotRunning));
}

#[test]
fn of_several_rounds_the_newest_that_runs_is_reached() {
    let round = |round, phase| {
        let mut reservation = with_phase(phase, reservation());
        reservation.metadata.name = Some(format!("lease-{round}"));
        reservation.spec.allocation.round = round;
        reservation
    };
    use AllocationPhase::{Active, Reserved, Stopped};
    let reached = |reservations: [GpuReservation; 2]| asked(&reservations, &request(2, 8000));
    let second = at("lease-0.lease-2.svc:8000");
    assert_eq!(reached([round(1, Active), round(2, Active)]), second);
    assert_eq!(reached([round(2, Active), round(1, Stopped)]), second);
    let first = at("lease-0.lease-1.svc:8000");
    assert_eq!(reached([round(2, Reserved), round(1, Active)]), first);
}

#[test]
fn results_are_reached_while_they_are_kept() {
    let results = request(3, RESULTS_PORT);
    assert_eq!(
        asked(&[job()], &results),
        Err(Refusal::NotRunning),
        "the job runs"
    );
    let mut ended = with_phase(AllocationPhase::Stopped, job());
    ended.status.as_mut().unwrap().results_until = Some(1);
    let address = asked(std::slice::from_ref(&ended), &results);
    assert_eq!(address, at(&format!("results-1.lease-a-1.svc:{RESULTS_PORT}")));
    // Not the job itself, which declares no port.
    assert_eq!(
        asked(&[ended.clone()], &request(3, 22)),
        Err(Refusal::NotDeclared)
    );
    ended.spec.allocation.workload.job.as_mut().unwrap().output = None;
    assert_eq!(asked(&[ended], &results), Err(Refusal::NotDeclared));
}

proptest! {
    /// Whatever a gateway sends, a stream leads to a declared port of a Service in a namespace of its own leases.
    #[test]
    fn nothing_else_is_reached(lease_uid in "7f1c|.*", rank: i64, near in -1..6_i64, port: u16, declared: bool) {
        let port = if declared { 8000 } else { port };
        for rank in [rank, near] {
            let request = StreamRequest { lease_uid: lease_uid.clone(), rank, port };
            if let Ok(target) = target(&[reservation()], &request, NAMESPACE) {
                prop_assert!(["lease-0.lease-a-1.svc", "lease-1.lease-a-1.svc"].contains(&target.host.as_str()));
                prop_assert!([8000, 9000].contains(&target.port));
                prop_assert_eq!(lease_uid.as_str(), UID);
            }
        }
    }
}
