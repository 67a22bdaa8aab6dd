//! What the reservation controller reads before it decides.

use std::{collections::BTreeMap, sync::Arc};

use leasehold_crds::{
    GpuAllocation, GpuReservation, lease::workload::JobResult, market::allocation::AllocationPhase,
};
use leasehold_planner::{
    escrow::{AccountAt, Terms},
    observed::Observed,
    provider::reservation::{
        self as planner, Plan, Reading, ResultsSeen, Running, Withdrawals, World, wants_live,
    },
};

use crate::{
    Sim,
    cluster::{Cluster, PodPhase},
    reconcile::ProcessId,
    rpc::Reader,
};

impl Sim {
    /// Gathers and decides. Also returns whether the workload was seen.
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
        let nodes = usize::try_from(read.spec.allocation.nodes).unwrap_or_default();
        let there = running
            .known()
            .is_some_and(|r| r.namespace && r.pods_alive + r.pods_succeeded >= nodes)
            || read.status.as_ref().is_some_and(|s| s.job.is_some());
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
            let workload = cluster.workloads.contains_key(&name);
            let reading = Reading::Live { workload };
            (&cluster.pods, &cluster.namespaces, &cluster.nodes, reading)
        } else {
            (
                &process.pods,
                &process.namespaces,
                &process.nodes,
                Reading::Cached,
            )
        };
        let pods: Vec<_> = pods.iter().filter(|p| p.namespace == name).collect();
        let succeeded = pods.iter().filter(|p| p.phase == PodPhase::Ended(0)).count();
        let mut running = Running {
            reading,
            namespace: namespaces.contains_key(&name),
            pods_alive: pods.iter().filter(|p| !p.has_ended()).count(),
            pods_ready: pods.iter().filter(|p| Cluster::is_ready(p, nodes_seen)).count(),
            pods_run: pods
                .iter()
                .filter(|p| p.has_run && !p.leaving && !p.has_ended())
                .count(),
            pods_ended: pods
                .iter()
                .filter(|p| p.has_run && !p.leaving && p.has_ended())
                .count(),
            pods_succeeded: succeeded,
            uptimes: Vec::new(),
            agents: BTreeMap::new(),
            gpu_uuids: process.holders.get(&name).cloned().unwrap_or_default(),
            job: None,
            endpoints: Vec::new(),
            trouble: String::new(),
            results: ResultsSeen::default(),
            without_isolation: Vec::new(),
        };
        let is_job = read.spec.allocation.workload.job.is_some();
        let known = read.status.as_ref().is_some_and(|s| s.job.is_some());
        let nodes = usize::try_from(read.spec.allocation.nodes).unwrap_or_default();
        let failure = pods.iter().find_map(|p| match p.phase {
            PodPhase::Ended(code) if code != 0 => Some(code),
            PodPhase::Ended(_) | PodPhase::Pending | PodPhase::Running => None,
        });
        if is_job && !known && (failure.is_some() || succeeded >= nodes) {
            if self.faults.sites_down.contains(&s) {
                return Observed::Unknown("cannot read the job's log".into());
            }
            running.job = Some(JobResult {
                exit_code: failure.unwrap_or(0),
                ..JobResult::default()
            });
        }
        Observed::Known(running)
    }
}
