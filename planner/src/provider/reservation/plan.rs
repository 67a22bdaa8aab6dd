//! What is to be done about a reservation.

use jiff::Timestamp;
use leasehold_crds::{market::allocation::AllocationPhase, provider::reservation::GpuReservationStatus};

use super::pods::PodChange;
use crate::provider::workload::{Objects, ResultsObjects};

/// The wanted state of the workload.
#[derive(Clone, Debug, PartialEq)]
pub enum Workload {
    /// Unchanged.
    Keep,
    /// These objects exist, and pods run.
    Run {
        /// They exist before any pod does.
        objects: Box<Objects>,
        /// In this order, after all objects exist.
        pods: Vec<PodChange>,
    },
    /// No pods; namespace and volumes stay.
    Halt(Vec<PodChange>),
    /// No pods but those of these objects, which serve what the job left on its volumes.
    KeepResults(Box<ResultsObjects>),
    /// No objects.
    Remove,
}

/// A call to the chain that a stored intent asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LegCall {
    /// Start the leg.
    Start,
    /// Pause it.
    Pause,
    /// Raise the seconds that the leg has credited to the tenant to this total.
    CreditTo(u64),
    /// End it.
    End,
    /// Withdraw its earnings to the payee.
    Withdraw,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The wanted state of the workload.
    pub workload: Workload,
    /// The call to the chain that an intent stored earlier asks for.
    pub call: Option<LegCall>,
    /// Whether the reservation is deleted.
    pub delete: bool,
    /// The status to be reported.
    pub status: GpuReservationStatus,
    /// When to reconcile again at the latest.
    pub wake: Timestamp,
}

impl Plan {
    /// Whether a stop or a fault is stored before the plan is carried out: the next reconcile, or another process with an older
    /// read of the chain, must not run again what this one stops, and a pod that tells since when it was lost is removed by the
    /// plan.
    #[must_use]
    pub fn must_persist_first(&self, before: Option<&GpuReservationStatus>) -> bool {
        let ends = |s: &GpuReservationStatus| s.stop_reason.is_some();
        let pauses = |s: &GpuReservationStatus| s.phase == AllocationPhase::Suspended;
        let is_faulty = |s: &GpuReservationStatus| s.fault_since.is_some();
        let begins = |is: &dyn Fn(&GpuReservationStatus) -> bool| is(&self.status) && !before.is_some_and(is);
        begins(&ends) || begins(&pauses) || begins(&is_faulty)
    }
}
