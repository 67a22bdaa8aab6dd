//! The caches of a provider's process: what it sees of its cluster and of the market.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    Sim,
    api::Key,
    reconcile::{ProcessId, Task},
    sim::Event,
};
use leasehold_crds::GpuReservation;
use std::sync::Arc;

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
                    process.market_error = Some("the API server is unreachable".into());
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
            6 if own_up => wanted.extend(self.follow_agents(s, p)),
            _ => {}
        }
        for task in wanted {
            self.enqueue(who, &task, 0);
        }
    }

    /// Reads what the agents report, and returns the reservations that are affected.
    fn follow_agents(&mut self, s: usize, p: usize) -> Vec<Task> {
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
            return names
                .into_iter()
                .map(|n| Task::Reservation((String::new(), n)))
                .collect();
        }
        Vec::new()
    }

    pub(crate) fn follow_reservations(&mut self, s: usize, p: usize, events: usize) {
        let site = &mut self.sites[s];
        let touched = site.processes[p].reservations.follow(&site.reservations, events);
        for (key, _) in touched {
            self.enqueue(ProcessId::Provider(s, p), &Task::Reservation(key), 0);
        }
    }

    /// The reservations in the provider's API server.
    pub(crate) fn reservations(&self, s: usize) -> Vec<(Key, Arc<GpuReservation>)> {
        let all = self.sites[s].reservations.all();
        all.map(|(key, r)| (key.clone(), r.clone())).collect()
    }
}
