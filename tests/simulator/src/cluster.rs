//! A provider's cluster: nodes with GPUs, namespaces, and pods that take time to be scheduled, become ready, finish and be
//! deleted.

use std::collections::{BTreeMap, BTreeSet};

use crate::random::Random;

/// One GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its UUID.
    pub uuid: String,
    /// Since when it is faulty, in Unix seconds.
    pub faulty_since: Option<u64>,
}

/// One node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its GPUs.
    pub gpus: Vec<Gpu>,
    /// Since when the whole node is dead, in Unix milliseconds.
    pub dead_since: Option<u64>,
    /// Since when the node is not ready, in Unix milliseconds.
    pub not_ready_since: Option<u64>,
    /// Until when no pod is scheduled to it, in Unix milliseconds.
    pub cordoned_until: u64,
    /// Until when its device plugin advertises no GPU, in Unix milliseconds.
    pub plugin_down_until: u64,
    /// When it last came back after it was dead, in Unix milliseconds; 0 if it never was.
    pub revived_ms: u64,
}

/// Longer than any run.
const NEVER_MS: u64 = 1 << 40;
/// A node whose heartbeat is older than this is not ready.
const GRACE_MS: u64 = 40_000;
/// A node that sends heartbeats again is ready after this time.
const RECOVERY_MS: u64 = 10_000;

/// Phase of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodPhase {
    /// Not scheduled yet, or its container does not run yet.
    Pending,
    /// Its container runs.
    Running,
    /// Ended with that exit code.
    Ended(i64),
    /// Its container was ended by the removal of the pod.
    Lost,
}

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// A number that is never reused.
    pub id: u64,
    /// Its namespace.
    pub namespace: String,
    /// Index of the pod among the nodes of the reservation.
    pub rank: usize,
    /// Its phase.
    pub phase: PodPhase,
    /// Whether it is ready.
    pub ready: bool,
    /// The node it is scheduled to.
    pub node: Option<String>,
    /// GPUs it holds.
    pub uuids: Vec<String>,
    /// Whether it is being deleted.
    pub leaving: bool,
    /// Whether its container has run.
    pub has_run: bool,
    /// Whether a finalizer keeps it.
    pub held: bool,
    /// Since when it is being deleted, in Unix milliseconds.
    pub removed_ms: Option<u64>,
    /// Whether a pod of its rank was there before.
    is_again: bool,
    spec: PodSpec,
    next_ms: u64,
}

impl Pod {
    /// Whether it has ended and no longer holds GPUs.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        matches!(self.phase, PodPhase::Ended(_) | PodPhase::Lost)
    }

    /// Whether it serves: its container runs and it is not being deleted.
    #[must_use]
    pub const fn serves(&self) -> bool {
        matches!(self.phase, PodPhase::Running) && !self.leaving
    }
}

/// Behaviour of a tenant's program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// Time until its container runs, which is when its image has been pulled; `None` if it never does.
    pub starts_after_ms: Option<u64>,
    /// Time from then on until it is ready; `None` if it never is.
    pub ready_after_ms: Option<u64>,
    /// The pod in which it crashes all the time.
    pub crashes_in: Option<usize>,
    /// Whether its container never runs in a pod that was created again after an eviction.
    pub stays_evicted: bool,
    /// Time until it ends by itself, and its exit code.
    pub ends: Option<(u64, i64)>,
}

/// What a pod is created with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSpec {
    /// The node that it may be scheduled to.
    pub on: String,
    /// Number of GPUs.
    pub gpus: usize,
    /// Whether it runs to completion.
    pub is_job: bool,
    /// The program.
    pub program: Program,
}

/// The cluster.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// Its nodes.
    pub nodes: Vec<Node>,
    /// Namespaces of leases; `true` while one is being deleted.
    pub namespaces: BTreeMap<String, bool>,
    /// All pods.
    pub pods: Vec<Pod>,
    /// How often a pod of a Job was started, by namespace and index.
    pub job_runs: BTreeMap<(String, usize), u32>,
    /// How often a pod that had not ended was removed, by namespace.
    pub losses: BTreeMap<String, u32>,
    /// Indexes of jobs, by namespace, whose program ended with exit code 0.
    succeeded: BTreeSet<(String, usize)>,
    /// The first job that was started again after it had succeeded.
    pub rerun: Option<(String, usize)>,
    /// Time of the last heartbeat of each node, in Unix milliseconds.
    pub heard_ms: BTreeMap<String, u64>,
    /// When a pod of a namespace was last evicted, in Unix milliseconds.
    pub evicted_ms: BTreeMap<String, u64>,
    ticked_ms: u64,
    /// Since when the API server has accepted heartbeats again after an outage.
    back_ms: u64,
    /// Incremented when something may have changed.
    pub changes: u64,
    pods_made: u64,
    /// The pods that were created, by namespace and index.
    made: BTreeSet<(String, usize)>,
}

impl Cluster {
    /// Creates a cluster of these nodes.
    #[must_use]
    pub fn of(nodes: Vec<Node>) -> Self {
        Self {
            nodes,
            ..Self::default()
        }
    }

    /// Creates the namespace if it does not exist.
    pub fn apply_namespace(&mut self, name: &str) {
        self.namespaces.entry(name.to_owned()).or_insert(false);
    }

    /// Creates a pod, unless one of its name exists. Returns `false` if the namespace is missing or being deleted.
    pub fn create_pod(
        &mut self,
        (namespace, rank): (&str, usize),
        spec: PodSpec,
        now: u64,
        random: &mut Random,
    ) -> bool {
        if self.namespaces.get(namespace) != Some(&false) {
            return false;
        }
        if self
            .pods
            .iter()
            .any(|p| p.namespace == namespace && p.rank == rank)
        {
            return true;
        }
        self.pods_made += 1;
        let is_again = !self.made.insert((namespace.to_owned(), rank));
        self.pods.push(Pod {
            id: self.pods_made,
            namespace: namespace.to_owned(),
            rank,
            phase: PodPhase::Pending,
            ready: false,
            node: None,
            uuids: Vec::new(),
            leaving: false,
            has_run: false,
            held: true,
            removed_ms: None,
            is_again,
            spec,
            next_ms: now + random.between(5, 300),
        });
        true
    }

    /// Releases the pod with that number, and deletes it if it is not being deleted yet.
    pub fn remove_pod(&mut self, id: u64, now: u64, random: &mut Random) {
        if let Some(i) = self.pods.iter().position(|p| p.id == id) {
            self.pods[i].held = false;
            self.delete_pod(i, now, random);
        }
    }

    fn delete_pod(&mut self, i: usize, now: u64, random: &mut Random) {
        let pod = &mut self.pods[i];
        if pod.leaving {
            return;
        }
        (pod.leaving, pod.ready, pod.removed_ms) = (true, false, Some(now));
        let quick = pod.has_ended() || pod.node.is_none();
        pod.next_ms = now
            + if quick {
                random.between(10, 300)
            } else {
                random.between(100, 6_000)
            };
        if !pod.has_ended() {
            *self.losses.entry(pod.namespace.clone()).or_default() += 1;
        }
    }

    /// Releases all pods of a namespace.
    pub fn release_pods(&mut self, namespace: &str) {
        for pod in self.pods.iter_mut().filter(|p| p.namespace == namespace) {
            pod.held = false;
        }
    }

    /// Deletes the namespace, which is removed after its pods.
    pub fn delete_namespace(&mut self, namespace: &str) {
        if let Some(leaving) = self.namespaces.get_mut(namespace) {
            *leaving = true;
        }
    }

    /// Whether there is nothing but nodes.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.namespaces.is_empty() && self.pods.is_empty()
    }

    fn is_taken(&self, uuid: &str) -> bool {
        let holds = |p: &Pod| !p.has_ended() && p.uuids.iter().any(|u| u == uuid);
        self.pods.iter().any(holds)
    }

    /// Advances controllers, scheduler and kubelets to `now`.
    pub fn tick(&mut self, now: u64, random: &mut Random) {
        self.changes += u64::from(!self.is_idle());
        self.update_node_readiness(now);
        self.collect_garbage(now, random);
        for i in 0..self.pods.len() {
            self.move_pod(i, now, random);
        }
        for pod in self.pods.iter_mut().filter(|p| p.leaving && now >= p.next_ms) {
            if !pod.has_ended() && !on_dead_node(pod, &self.nodes) {
                pod.phase = PodPhase::Lost;
            }
        }
        self.pods
            .retain(|p| !(p.leaving && now >= p.next_ms && p.has_ended() && !p.held));
        let pods = &self.pods;
        self.namespaces
            .retain(|name, leaving| !*leaving || pods.iter().any(|p| p.namespace == *name));
    }

    /// The node controller: a node with an old heartbeat is not ready. After an outage of the API server, all nodes
    /// are not ready for a while.
    fn update_node_readiness(&mut self, now: u64) {
        if now.saturating_sub(self.ticked_ms) > GRACE_MS {
            self.back_ms = now;
        }
        self.ticked_ms = now;
        for node in &mut self.nodes {
            let heard = self.heard_ms.entry(node.name.clone()).or_insert(now);
            let late = now.saturating_sub(*heard) > GRACE_MS;
            let beats = node.dead_since.is_none() && now >= self.back_ms + RECOVERY_MS;
            if late {
                node.not_ready_since.get_or_insert(now);
            }
            if beats {
                *heard = now;
                node.not_ready_since = None;
            }
        }
    }

    /// Whether a pod counts as ready. Pods on a node that is not ready do not.
    #[must_use]
    pub fn is_ready(pod: &Pod, nodes: &[Node]) -> bool {
        let mut on = nodes.iter().filter(|n| Some(&n.name) == pod.node.as_ref());
        pod.ready && !pod.leaving && on.all(|n| n.not_ready_since.is_none())
    }

    /// Whether a node of that name is dead.
    #[must_use]
    pub fn is_dead(&self, name: &str) -> bool {
        self.nodes
            .iter()
            .any(|n| n.name == name && n.dead_since.is_some())
    }

    fn collect_garbage(&mut self, now: u64, random: &mut Random) {
        for i in 0..self.pods.len() {
            if self.namespaces.get(&self.pods[i].namespace) == Some(&true) {
                self.delete_pod(i, now, random);
            }
        }
    }

    fn move_pod(&mut self, i: usize, now: u64, random: &mut Random) {
        let pod = &self.pods[i];
        if pod.leaving || now < pod.next_ms || on_dead_node(pod, &self.nodes) {
            return;
        }
        let spec = pod.spec.clone();
        match pod.phase {
            PodPhase::Pending if pod.node.is_some() => {
                if spec.is_job {
                    let job = (self.pods[i].namespace.clone(), self.pods[i].rank);
                    if self.succeeded.contains(&job) {
                        self.rerun.get_or_insert(job.clone());
                    }
                    *self.job_runs.entry(job).or_default() += 1;
                }
                let pod = &mut self.pods[i];
                (pod.phase, pod.has_run) = (PodPhase::Running, true);
                let program = spec.program;
                let ready = program
                    .ready_after_ms
                    .filter(|_| program.crashes_in != Some(pod.rank));
                pod.next_ms = now + ready.unwrap_or(NEVER_MS);
            }
            PodPhase::Pending => {
                if let Some((node, uuids)) = self.place(pod, now) {
                    let pod = &mut self.pods[i];
                    pod.node = Some(node);
                    pod.uuids = uuids;
                    let stays_evicted = spec.program.stays_evicted && pod.is_again;
                    let starts = spec.program.starts_after_ms.filter(|_| !stays_evicted);
                    pod.next_ms = now + starts.unwrap_or(NEVER_MS);
                } else {
                    self.pods[i].next_ms = now + random.between(500, 2_000);
                }
            }
            PodPhase::Running if !pod.ready => {
                let pod = &mut self.pods[i];
                pod.ready = true;
                pod.next_ms = spec.program.ends.map_or(u64::MAX, |(after_ms, _)| now + after_ms);
            }
            PodPhase::Running => {
                let code = spec.program.ends.map_or(0, |(_, code)| code);
                let pod = &mut self.pods[i];
                pod.ready = false;
                if spec.is_job {
                    pod.phase = PodPhase::Ended(code);
                    if code == 0 {
                        self.succeeded.insert((pod.namespace.clone(), pod.rank));
                    }
                } else {
                    // The program crashed; the kubelet restarts it.
                    pod.next_ms = now + random.between(500, 8_000);
                }
            }
            PodPhase::Ended(_) | PodPhase::Lost => {}
        }
    }

    /// Deletes a pod that runs or has ended, and cordons its node until then. Returns the namespace of the pod.
    pub fn drain(&mut self, until: u64, now: u64, random: &mut Random) -> Option<String> {
        let is_drained = |p: &Pod| p.serves() || p.has_ended() && !p.leaving;
        let drained: Vec<usize> = (0..self.pods.len())
            .filter(|i| is_drained(&self.pods[*i]))
            .collect();
        let i = *random.pick(&drained)?;
        self.delete_pod(i, now, random);
        let pod = &self.pods[i];
        let node = self
            .nodes
            .iter_mut()
            .find(|n| Some(&n.name) == pod.node.as_ref())?;
        node.cordoned_until = until;
        self.evicted_ms.insert(pod.namespace.clone(), now);
        Some(pod.namespace.clone())
    }

    /// Evicts the last pod of each pair that has run and whose tenant wants it. Returns the namespaces.
    pub fn evict_by_tenants(&mut self, now: u64, random: &mut Random) -> Vec<String> {
        let mut evicted = Vec::new();
        for i in 0..self.pods.len() {
            let evicts = |p: &Pod| p.spec.program.stays_evicted && p.has_run && !p.leaving;
            let first = |p: &Pod| evicts(p) && p.rank == 0 && p.namespace == self.pods[i].namespace;
            if self.pods[i].rank == 1 && evicts(&self.pods[i]) && self.pods.iter().any(first) {
                self.delete_pod(i, now, random);
                let namespace = self.pods[i].namespace.clone();
                self.evicted_ms.insert(namespace.clone(), now);
                evicted.push(namespace);
            }
        }
        evicted
    }

    fn place(&self, pod: &Pod, now: u64) -> Option<(String, Vec<String>)> {
        self.nodes
            .iter()
            .filter(|n| pod.spec.on == n.name && n.not_ready_since.is_none())
            .filter(|n| n.cordoned_until <= now && n.plugin_down_until <= now)
            .find_map(|node| {
                let free: Vec<String> = node
                    .gpus
                    .iter()
                    .filter(|g| g.faulty_since.is_none() && !self.is_taken(&g.uuid))
                    .map(|g| g.uuid.clone())
                    .take(pod.spec.gpus)
                    .collect();
                (free.len() == pod.spec.gpus).then(|| (node.name.clone(), free))
            })
    }
}

fn on_dead_node(pod: &Pod, nodes: &[Node]) -> bool {
    let mut on = nodes.iter().filter(|n| Some(&n.name) == pod.node.as_ref());
    on.any(|n| n.dead_since.is_some())
}
