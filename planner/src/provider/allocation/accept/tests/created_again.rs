//! Allocations that the market has created again, because they were lost while their leases were served.

use super::*;

/// Somebody deleted the allocation of a lease that is served, and the market has created it again.
#[test]
fn an_allocation_that_was_created_again_is_served_by_the_reservation_that_is_paid() {
    let mut reservation = reserved();
    let mut again = allocation();
    again.metadata.uid = Some("another".into());
    let with = |reservation: &GpuReservation, again: &GpuAllocation| {
        let plan = decided(again, Some(reservation));
        (
            plan.status.phase,
            plan.reserve.map(|r| (r.release, r.allocation_uid)),
        )
    };
    reservation.status = Some(GpuReservationStatus {
        phase: AllocationPhase::Reserved,
        ..GpuReservationStatus::default()
    });
    let requested = (AllocationPhase::Requested, None);
    assert_eq!(with(&reservation, &again), requested, "it is given up soon");
    reservation.status.as_mut().unwrap().phase = AllocationPhase::Active;
    assert_eq!(with(&reservation, &again), (AllocationPhase::Active, None));
    again.spec.release = true;
    let released = Some((true, "uid".to_owned()));
    assert_eq!(with(&reservation, &again), (AllocationPhase::Active, released));
    again.spec.leg = 1;
    assert_eq!(with(&reservation, &again), requested);
}
