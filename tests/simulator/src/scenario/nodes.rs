//! Scenarios of the nodes of a provider.

use crate::{Sim, cluster::Pod};

impl Sim {
    /// Drains a node of a random provider. Returns the time until the next drain.
    pub(super) fn drain_a_node(&mut self) -> u64 {
        let sites = u64::try_from(self.sites.len()).unwrap_or(1);
        let site = usize::try_from(self.random.below(sites)).unwrap_or(0);
        let until = self.now + self.random.between(30_000, 180_000);
        if !self.faults.sites_down.contains(&site) {
            let Self {
                sites, random, now, ..
            } = self;
            if let Some(name) = sites[site].cluster.drain(until, *now, random) {
                self.invariants.count("pod drained".into());
                self.note(|| format!("a pod of {name} is drained"));
            }
        }
        self.random.between(10_000, 60_000)
    }

    /// Restarts the device plugin of a node of a random provider. Returns the time until the next restart.
    pub(super) fn restart_a_plugin(&mut self) -> u64 {
        let sites = u64::try_from(self.sites.len()).unwrap_or(1);
        let site = usize::try_from(self.random.below(sites)).unwrap_or(0);
        let until = self.now + self.random.between(5_000, 90_000);
        let cluster = &mut self.sites[site].cluster;
        let count = u64::try_from(cluster.nodes.len()).unwrap_or(1);
        let which = usize::try_from(self.random.below(count)).unwrap_or(0);
        cluster.changes += 1;
        let node = &mut cluster.nodes[which];
        node.plugin_down_until = until;
        let name = node.name.clone();
        let serves = |p: &Pod| p.serves() && p.node.as_ref() == Some(&name);
        if cluster.pods.iter().any(serves) {
            self.invariants
                .count("device plugin restarted under a lease".into());
        }
        self.note(|| format!("the device plugin of {name} restarts"));
        self.random.between(10_000, 60_000)
    }
}
