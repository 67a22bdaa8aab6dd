//! What a provider's process sees of its cluster, and what it tells the market it can sell: `observe.rs` and
//! `offer.rs` of the operator.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use leasehold_crds::{
    GpuReservation,
    lease::workload::JobResult,
    market::{allocation::AllocationPhase, offer::PaymentIdentity},
    provider::node::{DeviceHealth, GpuDevice, GpuNodeStatus},
};
use leasehold_planner::{
    escrow::lease_name,
    observed::Observed,
    orphans::{self, Verdict},
    ports::Opened,
    provider::{
        health::{self, Health, KubeletWord, NodeWord},
        offer::supply::{GpusSeen, Hold, NodeSeen, PoolSupply, pool_supply},
        reservation::{Reading, ResultsSeen, Running, wants_live},
    },
    request::{Shape, Version},
};

use crate::{
    Sim,
    api::Key,
    cluster::{Cluster, Gpu, Node, PodPhase},
    market::Offer,
    reconcile::{ProcessId, Task},
    rpc::Reader,
    sim::Event,
};

/// Room of a node beside its GPUs: never what is short here.
fn shape(gpus: u64) -> Shape {
    Shape {
        gpus,
        millicores: gpus * 4_000,
        memory: gpus << 32,
        scratch: gpus << 34,
    }
}

impl Sim {
    pub(crate) fn kubelets(&mut self, s: usize) {
        let Sim {
            sites, random, now, ..
        } = self;
        if !self.faults.sites_down.contains(&s) {
            sites[s].cluster.tick(*now, random);
        }
        self.at(
            if self.sites[s].cluster.is_idle() {
                1_000
            } else {
                400
            },
            Event::Kubelets(s),
        );
    }

    pub(crate) fn sync_provider(&mut self, s: usize, p: usize, cache: u8) {
        let events = usize::try_from(self.random.between(1, 12)).unwrap_or(1);
        self.follow_provider(s, p, cache, events);
    }

    pub(crate) fn follow_provider(&mut self, s: usize, p: usize, cache: u8, events: usize) {
        let who = ProcessId::Provider(s, p);
        let own_up = !self.faults.sites_down.contains(&s);
        let market_up = self.faults.market_up && !self.faults.cut_from_market.contains(&s);
        let mut wanted = Vec::new();
        match cache {
            0 if own_up => self.follow_reservations(s, p, events),
            1 if own_up => {
                let site = &mut self.sites[s];
                for (_, r) in site.processes[p]
                    .reservation_store
                    .follow(&site.reservations, events)
                {
                    wanted.push(Task::Allocation((
                        r.spec.allocation_namespace.clone(),
                        r.spec.allocation_name.clone(),
                    )));
                }
            }
            2 if market_up => {
                let site = &mut self.sites[s];
                let namespace = site.namespace.clone();
                let touched = site.processes[p].allocations.follow(&self.allocations, events);
                let mine = touched.into_iter().filter(|(key, _)| key.0 == namespace);
                wanted.extend(mine.map(|(key, _)| Task::Allocation(key)));
            }
            3 => {
                let process = &mut self.sites[s].processes[p];
                if market_up {
                    process.market_error = None;
                    for (key, _) in process.allocation_store.follow(&self.allocations, events) {
                        wanted.push(Task::Reservation((String::new(), key.1)));
                    }
                } else {
                    process.market_error = Some("the API server can't be reached".into());
                }
            }
            4 if own_up => {
                let site = &mut self.sites[s];
                if site.processes[p].pods != site.cluster.pods {
                    let both = site.processes[p].pods.iter().chain(&site.cluster.pods);
                    let names: BTreeSet<String> = both.map(|pod| pod.namespace.clone()).collect();
                    site.processes[p].pods.clone_from(&site.cluster.pods);
                    wanted.extend(names.into_iter().map(|n| Task::Reservation((String::new(), n))));
                }
            }
            5 if own_up => {
                let site = &mut self.sites[s];
                if site.processes[p].namespaces != site.cluster.namespaces {
                    let both = site.processes[p]
                        .namespaces
                        .keys()
                        .chain(site.cluster.namespaces.keys());
                    let names: BTreeSet<String> = both.cloned().collect();
                    site.processes[p].namespaces.clone_from(&site.cluster.namespaces);
                    wanted.extend(names.into_iter().map(|n| Task::Reservation((String::new(), n))));
                }
            }
            6 if own_up => {
                let site = &mut self.sites[s];
                let mut holders: BTreeMap<String, Vec<String>> = BTreeMap::new();
                for pod in site
                    .cluster
                    .pods
                    .iter()
                    .filter(|p| !p.has_ended() && p.node.is_some())
                {
                    let held = holders.entry(pod.namespace.clone()).or_default();
                    held.extend(pod.uuids.iter().cloned());
                    held.sort();
                }
                let process = &mut site.processes[p];
                process.agents_seen = site.cluster.changes;
                process.heard_ms.clone_from(&site.cluster.heard_ms);
                if process.holders != holders || process.nodes != site.cluster.nodes {
                    let names: BTreeSet<String> = holders.keys().cloned().collect();
                    process.holders = holders;
                    process.nodes.clone_from(&site.cluster.nodes);
                    wanted.extend(names.into_iter().map(|n| Task::Reservation((String::new(), n))));
                }
            }
            _ => {}
        }
        for task in wanted {
            self.enqueue(who, &task, 0);
        }
    }

    /// What runs of a reservation.
    pub(crate) fn running(&self, s: usize, p: usize, read: &GpuReservation) -> Observed<Running> {
        let process = &self.sites[s].processes[p];
        let cluster = &self.sites[s].cluster;
        let name = read.metadata.name.clone().unwrap_or_default();
        let live = wants_live(read);
        if live && self.faults.sites_down.contains(&s) {
            return Observed::Unknown("what runs can't be read".into());
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
            pods_succeeded: succeeded,
            gpu_uuids: process.holders.get(&name).cloned().unwrap_or_default(),
            job: None,
            endpoints: Vec::new(),
            trouble: String::new(),
            results: ResultsSeen::default(),
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
                return Observed::Unknown("the job's log can't be read".into());
            }
            running.job = Some(JobResult {
                exit_code: failure.unwrap_or(0),
                ..JobResult::default()
            });
        }
        Observed::Known(running)
    }

    /// How the GPUs are that a reservation holds. What of its nodes is suspect is asked of the API server itself.
    pub(crate) fn health(&mut self, s: usize, p: usize, read: &GpuReservation, now: Timestamp) -> Health {
        let silent = self.faults.agents_silent.contains(&s);
        let site_up = !self.faults.sites_down.contains(&s);
        let offset_ms = self.sites[s].processes[p].offset_ms;
        let at = |ms: u64| {
            let local = i64::try_from(ms).unwrap_or(0) + offset_ms;
            Timestamp::from_millisecond(local).unwrap_or(Timestamp::UNIX_EPOCH)
        };
        let now_ms = self.now;
        // Agents that say nothing have said nothing for a minute: the quickest way to an unknown.
        let heard = |ms: Option<&u64>| ms.map(|ms| at(if silent { (*ms).min(now_ms - 61_000) } else { *ms }));
        let kubelet = |node: &Node, heard_ms: Option<&u64>| match node.not_ready_since {
            None => KubeletWord::Ready,
            Some(since) => KubeletWord::NotReady {
                since: at(since),
                heard_at: heard_ms.map(|ms| at(*ms)),
            },
        };
        let site = &mut self.sites[s];
        let process = &mut site.processes[p];
        let held = read
            .status
            .as_ref()
            .map(|s| s.gpu_uuids.clone())
            .unwrap_or_default();
        // The agents' clocks are this process's.
        let offset = offset_ms.div_euclid(1000);
        let told = |faulty_since: Option<u64>| {
            let since = faulty_since.map(|s| i64::try_from(s).unwrap_or(0) + offset);
            let since = since.and_then(|s| Timestamp::from_second(s).ok());
            since.map_or_else(String::new, |s| s.to_string())
        };
        let statuses: Vec<(&str, GpuNodeStatus)> = process
            .nodes
            .iter()
            .map(|node| {
                let device = |gpu: &Gpu| GpuDevice {
                    uuid: gpu.uuid.clone(),
                    health: if gpu.faulty_since.is_some() {
                        DeviceHealth::Lost
                    } else {
                        DeviceHealth::Healthy
                    },
                    since: told(gpu.faulty_since),
                    ..GpuDevice::default()
                };
                let devices = node.gpus.iter().map(device).collect();
                (
                    node.name.as_str(),
                    GpuNodeStatus {
                        devices,
                        ..GpuNodeStatus::default()
                    },
                )
            })
            .collect();
        let mut answering_since = None;
        let mut words: Vec<NodeWord<'_>> = Vec::new();
        for ((name, status), seen) in statuses.iter().zip(&process.nodes) {
            if !read.spec.nodes.iter().any(|n| n == name) {
                continue;
            }
            let heard_ms = process.heard_ms.get(*name);
            let mut word = NodeWord {
                node: name,
                heard_at: heard(heard_ms),
                status: Some(status),
                kubelet: kubelet(seen, heard_ms),
            };
            if word.is_suspect() {
                process.answers = process.answers.after(site_up, now);
                answering_since = process.answers.since();
                if let (true, Some(node)) = (site_up, site.cluster.nodes.iter().find(|n| n.name == *name)) {
                    let heard_ms = site.cluster.heard_ms.get(*name);
                    word.heard_at = heard(heard_ms);
                    word.kubelet = kubelet(node, heard_ms);
                }
            }
            words.push(word);
        }
        health::judge(&held, &words, answering_since, now)
    }

    /// What this provider's pool can sell, by these reservations.
    pub(crate) fn supply_of(
        &self,
        s: usize,
        p: usize,
        reservations: &[Arc<GpuReservation>],
        now: Timestamp,
    ) -> PoolSupply {
        let site = &self.sites[s];
        let process = &site.processes[p];
        let nodes: Vec<NodeSeen> = process
            .nodes
            .iter()
            .map(|node| {
                let count = |n: usize| u64::try_from(n).unwrap_or(0);
                let on = process
                    .pods
                    .iter()
                    .filter(|p| p.node.as_ref() == Some(&node.name) && !p.has_ended());
                let requested = on.map(|p| count(p.uuids.len())).sum();
                let healthy = node.gpus.iter().all(|g| g.faulty_since.is_none());
                NodeSeen {
                    name: node.name.clone(),
                    labels: BTreeMap::new(),
                    schedulable: node.not_ready_since.is_none(),
                    allocatable: shape(count(node.gpus.len())),
                    requested: shape(requested),
                    gpus: Some(GpusSeen {
                        sell: true,
                        class: "t4-16g".into(),
                        memory: 16_000_000_000,
                        compute_capability: Version(7, 5),
                        cuda: Version(12, 4),
                        healthy,
                        reason: String::new(),
                        message: String::new(),
                        claims: node.gpus.iter().map(|g| g.uuid.clone()).collect(),
                        alive: !self.faults.agents_silent.contains(&s),
                    }),
                    user_namespaces: true,
                }
            })
            .collect();
        let holds = self.holds(s, p, reservations);
        let payment = self.payment();
        pool_supply(
            &site.pool,
            Some(&payment),
            &nodes,
            &holds,
            &mut BTreeSet::new(),
            now,
        )
    }

    fn payment(&self) -> PaymentIdentity {
        PaymentIdentity {
            chain_id: i64::try_from(self.currency.chain_id).unwrap_or(0),
            escrow: self.currency.escrow.to_string(),
            token: self.currency.token.to_string(),
        }
    }

    fn holds(&self, s: usize, p: usize, reservations: &[Arc<GpuReservation>]) -> Vec<Hold> {
        let process = &self.sites[s].processes[p];
        let waits = |r: &&Arc<GpuReservation>| {
            let status = r.status.as_ref();
            let phase = status.map_or(AllocationPhase::Requested, |s| s.phase);
            let ended = status.is_some_and(|s| s.job.is_some() || s.stop_reason.is_some());
            let waits = matches!(
                phase,
                AllocationPhase::Requested
                    | AllocationPhase::Reserved
                    | AllocationPhase::Provisioning
                    | AllocationPhase::Active
            );
            waits && !ended
        };
        reservations
            .iter()
            .filter(waits)
            .filter_map(|r| {
                let name = r.metadata.name.clone().unwrap_or_default();
                let mine = process
                    .pods
                    .iter()
                    .filter(|p| p.namespace == name && !p.has_ended());
                let there: BTreeSet<&String> = mine.filter_map(|p| p.node.as_ref()).collect();
                let nodes = r
                    .spec
                    .nodes
                    .iter()
                    .filter(|n| !there.contains(n))
                    .cloned()
                    .collect();
                Some(Hold {
                    shape: Shape::from_wire(&r.spec.allocation.per_node).ok()?,
                    nodes,
                    name,
                })
            })
            .collect()
    }

    /// Tells the market what can be had, and that this provider lives.
    pub(crate) fn publish_offer(&mut self, s: usize, p: usize) {
        if !self.faults.market_up || self.faults.cut_from_market.contains(&s) {
            return;
        }
        let process = &self.sites[s].processes[p];
        let now = self.clock(process.offset_ms);
        let reservations: Vec<_> = process.reservation_store.all().map(|(_, r)| r.clone()).collect();
        let supply = self.supply_of(s, p, &reservations, now);
        let site = &self.sites[s];
        self.offers.insert(
            site.name.clone(),
            Offer {
                rows: supply.rows,
                renewed_at: now.as_second(),
                payee: site.identity.payee,
                controller: site.identity.controller,
            },
        );
    }

    /// Namespaces of ours that belong to no reservation: `sweep.rs` at the edge.
    pub(crate) fn clear_orphans(&mut self, s: usize, p: usize) {
        let process = &self.sites[s].processes[p];
        let named: BTreeSet<&String> = process.reservation_store.all().map(|(key, _)| &key.1).collect();
        let nobodys: Vec<String> = process
            .namespaces
            .iter()
            .filter(|(name, leaving)| !**leaving && !named.contains(name))
            .map(|(name, _)| name.clone())
            .collect();
        let found = nobodys.into_iter().map(|name| {
            let verdict = self.orphan_verdict(s, p, &name);
            (name, verdict)
        });
        let found = found.collect();
        let agreed = self.sites[s].processes[p].suspects.agreed(found);
        for name in agreed.into_keys() {
            let key = (String::new(), name);
            let swept = self.own_write(s, |sim| {
                let site = &mut sim.sites[s];
                if site.reservations.get(&key).is_none() {
                    site.cluster.delete_namespace(&key.1);
                }
                Ok(())
            });
            if swept.is_ok() {
                self.invariants.count("namespace swept".into());
                self.note(|| format!("sweeps {}", key.1));
            }
        }
    }

    /// By its account; what can't be judged is left.
    fn orphan_verdict(&mut self, s: usize, p: usize, name: &str) -> Verdict {
        let (mut reader, who) = (Reader::default(), ProcessId::Provider(s, p));
        if self.read_head(&mut reader, who).known().is_none() {
            return Verdict::Leave;
        }
        let until = self.chain.newest().head.number;
        let named = |o: &&Opened| name.starts_with(&lease_name(o.terms.id()));
        let terms = self.chain.opened(until).find(named).map(|o| o.terms.clone());
        let Some(terms) = terms else {
            return Verdict::Over;
        };
        let read = self.read_account(&mut reader, who, &terms, 0);
        read.known()
            .map_or(Verdict::Leave, |read| orphans::judge(&terms, read))
    }

    /// Reservations of a provider, as they are.
    pub(crate) fn reservations(&self, s: usize) -> Vec<(Key, Arc<GpuReservation>)> {
        let all = self.sites[s].reservations.all();
        all.map(|(key, r)| (key.clone(), r.clone())).collect()
    }
}
