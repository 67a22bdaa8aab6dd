//! What is read for a decision about a reservation.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use leasehold_crds::{
    GpuReservation,
    lease::workload::{Endpoint, JobResult, ResultsAt},
    market::allocation::AllocationPhase,
    provider::reservation::GpuReservationStatus,
};

use super::{
    leg::Withdrawals,
    pods::NodePod,
    snapshot::{same_money, snapshot_of},
};
use crate::{
    escrow::{Account, AccountAt, AccountRead},
    observed::Observed,
    provider::{
        health::Health,
        offer::resumption::Room,
        workload::{AgentReports, ConnectorPods, EgressDenylist, Uptime},
    },
};

/// How the pods were read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reading {
    /// From watches, which may be behind: more pods may exist.
    #[default]
    Cached,
    /// From the API server.
    Live,
}

/// Whether the pods must be read from the API server: only such a reading can report that nothing runs any more.
#[must_use]
pub fn wants_live(reservation: &GpuReservation) -> bool {
    let status = reservation.status.as_ref();
    status.is_some_and(|s| s.stop_reason.is_some())
}

/// The running workload of a reservation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Running {
    /// How it was read.
    pub reading: Reading,
    /// Its pods, without those that serve results. The numbers below are counted from them.
    pub pods: Vec<NodePod>,
    /// Whether its namespace exists.
    pub namespace: bool,
    /// Pods that have not ended.
    pub pods_alive: usize,
    /// Of those, ready ones.
    pub pods_ready: usize,
    /// Pods that have not ended and whose containers have all run; see [`has_run`](crate::provider::workload::has_run).
    pub pods_run: usize,
    /// Pods whose program ended after their containers had run.
    pub pods_ended: usize,
    /// Pods whose program ended with exit code 0.
    pub pods_succeeded: usize,
    /// Since when a pod is lost, in Unix seconds, if the cluster tells.
    pub lost_at: Option<i64>,
    /// Pods that have not ended and are not being deleted, by what their kubelets report of their uptime.
    pub uptimes: Vec<Uptime>,
    /// When the agents of its nodes reported, by node.
    pub agents: BTreeMap<String, AgentReports>,
    /// GPUs bound to its pods, by pod-resources.
    pub gpu_uuids: Vec<String>,
    /// How its job ended.
    pub job: Option<JobResult>,
    /// Addresses of its ports; a port without an address is missing.
    pub endpoints: Vec<Endpoint>,
    /// Why pods are not ready, for a condition.
    pub trouble: String,
    /// What serves the job's results.
    pub results: ResultsSeen,
    /// Pods that the API server stored without the isolation that was asked for, by name.
    pub without_isolation: Vec<String>,
}

/// The pods that serve a job's results after its end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResultsSeen {
    /// Their addresses.
    pub at: Vec<ResultsAt>,
    /// Whether the results of every node have been fetched.
    pub fetched: bool,
    /// Number of nodes whose results are served, or were fetched.
    pub ready: usize,
    /// Why others are not served, for a condition.
    pub trouble: String,
}

/// Everything that was read.
#[derive(Clone, Debug)]
pub struct World<'a> {
    /// The reservation.
    pub reservation: &'a GpuReservation,
    /// Its account, at the newest block.
    pub account: Observed<AccountAt>,
    /// A second read of it, where a decision needs two.
    pub second: Observed<AccountAt>,
    /// The account at the block level that the network's policy asks for, while nothing is provisioned.
    pub settled: Option<Observed<AccountAt>>,
    /// [`FINAL_READS`](crate::ports::FINAL_READS) reads of the account at the block level at which its end is final; read
    /// after the stop.
    pub final_reads: Vec<Observed<AccountAt>>,
    /// The running workload.
    pub running: Observed<Running>,
    /// Whether the market's allocation exists; unknown while the market can't be reached.
    pub allocation_exists: Observed<bool>,
    /// Seconds for which the workload is served on through a chain outage.
    pub grace_seconds: u64,
    /// Health of its GPUs and their nodes.
    pub health: Health,
    /// Room for its pods after a pause, read as [`wants_room`](crate::provider::offer::resumption::wants_room) says.
    pub room: Room,
    /// When earnings are withdrawn while it runs; only at the end, when absent.
    pub withdraw: Option<Withdrawals>,
    /// Addresses that its pods may not reach.
    pub denylist: Arc<EgressDenylist>,
    /// Pods from which ports are reached through a tunnel.
    pub connector: &'a ConnectorPods,
    /// Image of the pods that serve results.
    pub results_image: &'a str,
}

/// Whether the account is also read at the block level at which its end is final.
#[must_use]
pub fn wants_final(reservation: &GpuReservation, read: &Observed<AccountAt>) -> bool {
    let stopped = reservation
        .status
        .as_ref()
        .is_some_and(|s| s.stopped_at.is_some());
    stopped && super::present(read).is_some()
}

/// Whether the account is read a second time: before a stop, and where the read is what the stop rule uses while the chain
/// cannot be read.
#[must_use]
pub fn wants_second(reservation: &GpuReservation, read: &Observed<AccountAt>) -> bool {
    let halted = |s: &GpuReservationStatus| {
        s.stop_reason.is_some()
            || s.fault_since.is_some()
            || s.resuming_since.is_some()
            || matches!(
                s.phase,
                AllocationPhase::Provisioning | AllocationPhase::Suspended
            )
    };
    let status = reservation.status.as_ref();
    let is_news = |a: &Account| {
        let before = status.and_then(|s| s.escrow.as_ref());
        !before.is_some_and(|before| same_money(before, &snapshot_of(a, Timestamp::UNIX_EPOCH)))
    };
    match read.known().map(|at| &at.read) {
        _ if status.is_some_and(halted) => true,
        Some(AccountRead::Present(account)) => account.closed || account.running == 0 || is_news(account),
        Some(AccountRead::Absent | AccountRead::Mismatch) => true,
        None => false,
    }
}
