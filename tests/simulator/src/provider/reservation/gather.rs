//! What the reservation controller reads before it decides.

use std::sync::Arc;

use leasehold_crds::{
    GpuAllocation, GpuReservation, lease::workload::JobResult, market::allocation::AllocationPhase,
};
use leasehold_planner::{
    escrow::{AccountAt, Terms},
    observed::Observed,
    provider::{
        reservation::{self as planner, NodePod, Plan, Reading, Running, Withdrawals, World, wants_live},
        workload::{End, FINALIZER_POD},
    },
};

use crate::{
    Sim,
    cluster::{Cluster, Node, Pod, PodPhase},
    reconcile::ProcessId,
    rpc::Reader,
};

impl Sim {
    /// Gathers and decides. Also returns whether the namespace was seen.
    pub(crate) fn plan_reservation(
        &mut self,
        s: usize,
        p: usize,
        read: &GpuReservation,
        reader: &mut Reader,
    ) -> (Plan, bool) {
        let who = ProcessId::Provider(s, p);
        let now = self.clock(self.sites[s].processes[p].offset_ms);
        let terms = Terms::from_wire(&read.spec.allocation.escrow).map_err(|e| e.to_string());
        let (account, second, settled) = match &terms {
            Ok(terms) => self.read_chain(s, who, read, terms, reader),
            Err(why) => {
                let unknown = || why.clone();
                (
                    Observed::Unknown(unknown()),
                    Observed::Unknown("not read".into()),
                    None,
                )
            }
        };
        let final_reads = match &terms {
            Ok(terms) if planner::wants_final(read, &account) => self.final_reads(reader, who, terms),
            Ok(_) | Err(_) => Vec::new(),
        };
        let running = self.running(s, p, read);
        let there = running.known().is_some_and(|r| r.namespace);
        let health = self.health(s, p, read, now);
        let process = &self.sites[s].processes[p];
        let at = (
            read.spec.allocation_namespace.clone(),
            read.spec.allocation_name.clone(),
        );
        let world = World {
            reservation: read,
            account,
            second,
            settled,
            final_reads,
            running,
            allocation_exists: match &process.market_error {
                Some(why) => Observed::Unknown(why.clone()),
                // An allocation that is not in the cache is read from the API.
                None => {
                    let uid = read.spec.allocation_uid.as_str();
                    let is_wanted = |a: &Arc<GpuAllocation>| a.metadata.uid.as_deref() == Some(uid);
                    let cached = process.allocation_store.get(&at).is_some_and(is_wanted);
                    let market_up = self.faults.market_up && !self.faults.cut_from_market.contains(&s);
                    match (cached, market_up) {
                        (true, _) => Observed::Known(true),
                        (false, true) => Observed::Known(self.allocations.get(&at).is_some_and(is_wanted)),
                        (false, false) => Observed::Unknown("the allocation can't be read".into()),
                    }
                }
            },
            grace_seconds: self.sites[s].grace_seconds,
            health,
            room: self.room_to_resume(s, p, read),
            withdraw: self.sites[s]
                .pool
                .spec
                .withdraw
                .as_ref()
                .and_then(|w| Withdrawals::of(w, 6)),
            denylist: Arc::default(),
            connector: &leasehold_planner::provider::workload::ConnectorPods::default(),
            results_image: "operator",
        };
        // Decisions use the time after the reads.
        let now = self.clock_after(process.offset_ms, reader.cost_ms);
        (planner::decide(&world, now), there)
    }

    /// Reads the account, a second time and at the required finality where needed.
    fn read_chain(
        &mut self,
        s: usize,
        who: ProcessId,
        read: &GpuReservation,
        terms: &Terms,
        reader: &mut Reader,
    ) -> (
        Observed<AccountAt>,
        Observed<AccountAt>,
        Option<Observed<AccountAt>>,
    ) {
        let phase = read
            .status
            .as_ref()
            .map_or(AllocationPhase::Requested, |s| s.phase);
        let wants_second = |account: &_| planner::wants_second(read, account);
        let (account, second) = self.read_account_twice(reader, who, (terms, 0), wants_second);
        let second = second.unwrap_or_else(|| Observed::Unknown("not read".into()));
        let mut settled = None;
        let unpaid = matches!(phase, AllocationPhase::Requested | AllocationPhase::Reserved);
        if account.known().is_some() && unpaid {
            settled = Some(match self.sites[s].finality {
                0 => account.clone(),
                behind => self.read_account_at(reader, who, terms, behind),
            });
        }
        (account, second, settled)
    }

    /// What is running for a reservation.
    pub(crate) fn running(&self, s: usize, p: usize, read: &GpuReservation) -> Observed<Running> {
        let process = &self.sites[s].processes[p];
        let cluster = &self.sites[s].cluster;
        let name = read.metadata.name.clone().unwrap_or_default();
        let live = wants_live(read);
        if live && self.faults.sites_down.contains(&s) {
            return Observed::Unknown("cannot read what is running".into());
        }
        let (pods, namespaces, nodes_seen, reading) = if live {
            (&cluster.pods, &cluster.namespaces, &cluster.nodes, Reading::Live)
        } else {
            (
                &process.pods,
                &process.namespaces,
                &process.nodes,
                Reading::Cached,
            )
        };
        let pods = pods.iter().filter(|p| p.namespace == name);
        let mut running = Running {
            reading,
            namespace: namespaces.contains_key(&name),
            gpu_uuids: process.holders.get(&name).cloned().unwrap_or_default(),
            ..Running::of(pods.map(|p| node_pod(p, nodes_seen)).collect())
        };
        let known = read.status.as_ref().is_some_and(|s| s.job.is_some());
        let end = planner::job_end(read, &running.pods).filter(|_| !known);
        running.job = end.map(|end| JobResult {
            exit_code: end.exit_code,
            ..JobResult::default()
        });
        Observed::Known(running)
    }
}

/// What the operator reads of a pod.
fn node_pod(pod: &Pod, nodes: &[Node]) -> NodePod {
    let end = match pod.phase {
        PodPhase::Ended(exit_code) => Some(End::Program {
            exit_code,
            finished_at: None,
        }),
        PodPhase::Lost => Some(End::Lost("deleted".into())),
        PodPhase::Pending | PodPhase::Running => None,
    };
    NodePod {
        index: i64::try_from(pod.rank).unwrap_or(i64::MAX),
        name: format!("lease-{}", pod.rank),
        uid: pod.id.to_string(),
        is_leaving: pod.leaving,
        is_ready: Cluster::is_ready(pod, nodes),
        has_run: pod.has_run,
        removed_at: pod.removed_ms.and_then(|ms| i64::try_from(ms / 1000).ok()),
        end,
        finalizers: if pod.held {
            vec![FINALIZER_POD.into()]
        } else {
            Vec::new()
        },
    }
}
