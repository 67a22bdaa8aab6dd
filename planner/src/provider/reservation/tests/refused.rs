//! What the cluster refuses is reported, once.

use super::*;

#[test]
fn an_object_that_the_cluster_refuses_is_told_in_the_words_of_the_refusal() {
    let reservation = GpuReservation::new("lease-x-0", GpuReservationSpec::default());
    let refusal = "admission webhook \"policy\" denied the request: images must be signed";
    let mut status = GpuReservationStatus::default();
    object_refused(&reservation, &mut status, refusal, Timestamp::UNIX_EPOCH);
    let ready = &status.conditions[0];
    assert_eq!((ready.type_.as_str(), ready.status.as_str()), ("Ready", "False"));
    assert!(ready.message.ends_with(refusal), "{}", ready.message);
    // The next reconcile would find the pods ready, and reports the refusal as of the first one: nothing is written again.
    let mut refused = reservation.clone();
    refused.status = Some(status.clone());
    let mut next = status.clone();
    next.conditions[0].status = "True".into();
    next.conditions[0].last_transition_time.0 = Timestamp::from_second(60).unwrap();
    object_refused(&refused, &mut next, refusal, Timestamp::from_second(60).unwrap());
    assert_eq!(next, status);
    object_refused(
        &refused,
        &mut next,
        "exceeded quota",
        Timestamp::from_second(60).unwrap(),
    );
    assert!(next.conditions[0].message.ends_with("exceeded quota"));
    // A reservation that stops is not ready for that reason alone.
    let mut stopping = GpuReservationStatus {
        stop_reason: Some(StopReason::Released),
        ..GpuReservationStatus::default()
    };
    object_refused(&reservation, &mut stopping, refusal, Timestamp::UNIX_EPOCH);
    assert!(stopping.conditions.is_empty());
}
