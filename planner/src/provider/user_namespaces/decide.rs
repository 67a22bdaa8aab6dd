//! Which node is probed next, and what the probes have shown.

use jiff::Timestamp;
use leasehold_crds::{
    GpuPool,
    provider::pool::{ProbeResult, UserNamespaceProof},
    shared::text,
};

use super::{Candidate, FailedStart, MESSAGE_MAX, NODES_MAX, ProbeEnd, ProbePod, at, pod, proofs};
use crate::provider::offer::supply::PoolSupply;

/// Wait after the first probe that proved nothing; it doubles with each further one.
const WAIT_SECONDS: i64 = 600;
/// Longest wait.
const WAIT_SECONDS_MAX: i64 = 6 * 3600;
/// Bound of the schema.
const ATTEMPTS_MAX: i64 = 1000;
/// A container that could not be created for this long does not start. A pod that no node had room for does not get one. A pod
/// that was created this long ago is seen.
const START_SECONDS: i64 = 30;
/// The kubelet ends the pod before.
const END_SECONDS: i64 = 150;
/// A younger proof is not withdrawn: a tenant whose own program does not start could otherwise have a node probed all
/// the time.
const WITHDRAWN_AFTER_SECONDS: i64 = 600;

/// What is known of a pool.
#[derive(Clone, Copy, Debug)]
pub struct World<'a> {
    /// The pool, with all proofs in its status.
    pub pool: &'a GpuPool,
    /// Its nodes and their room.
    pub supply: &'a PoolSupply,
    /// Its probe pods.
    pub pods: &'a [ProbePod],
    /// Pods of leases that have not started, which were not told before.
    pub failed_starts: &'a [FailedStart],
}

/// What is to be done, and what is proven.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// The proofs of all nodes, for the status of the pool.
    pub proofs: Vec<UserNamespaceProof>,
    /// Pods to create and to delete.
    pub changes: Vec<Change>,
    /// Probes that have ended.
    pub finished: Vec<Finished>,
}

/// A change of a probe pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Create the pod of the pool.
    Create {
        /// Name of the Node.
        node: String,
        /// What it proves.
        identity: String,
    },
    /// Delete a pod.
    Delete {
        /// Its name.
        name: String,
        /// Its UID.
        uid: String,
    },
}

/// A probe that has ended, or a proof that no longer holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Name of the Node.
    pub node: String,
    /// What became of it.
    pub outcome: Outcome,
    /// Why, for a person; empty if it is proven.
    pub message: String,
}

/// What became of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It proved user namespaces.
    Proven,
    /// It did not.
    Failed,
    /// It told nothing.
    Interrupted,
    /// A pod of a lease did not start: what was proven is probed again.
    Withdrawn,
}

/// Decides which node is probed, and what is proven. At most one probe pod of a pool exists at a time.
#[must_use]
pub fn decide(world: &World<'_>, now: Timestamp) -> Decision {
    let known = proofs(world.pool);
    let own_name = pod::name(world.pool.metadata.name.as_deref().unwrap_or_default());
    let own = world.pods.iter().find(|pod| pod.name == own_name);
    let mut decision = Decision::default();
    for candidate in world.supply.candidates.iter().take(NODES_MAX) {
        let before = known.get(candidate.node.as_str()).copied();
        let failed = world.failed_starts.iter().find(|s| s.node == candidate.node);
        let (proof, outcome) = Node {
            candidate,
            pod: own,
            failed,
            now,
        }
        .after(before);
        decision.finished.extend(outcome.map(|outcome| Finished {
            node: proof.node.clone(),
            outcome,
            message: proof.message.clone(),
        }));
        decision.proofs.push(proof);
    }
    // A pod whose result is not stored yet stays until the next decision: it tells the result again after a crash.
    if decision.finished.is_empty() {
        let stale = world.pods.iter().filter(|pod| {
            let is_used = |p: &UserNamespaceProof| {
                p.result == ProbeResult::Probing && p.node == pod.node && p.identity == pod.identity
            };
            let is_own = pod.name == own_name && decision.proofs.iter().any(is_used);
            !pod.is_leaving && !is_own
        });
        decision.changes = stale.map(delete).collect();
    }
    let is_probing = decision.proofs.iter().any(|p| p.result == ProbeResult::Probing);
    if world.pods.is_empty() && !is_probing {
        decision
            .changes
            .extend(next(world.supply, &mut decision.proofs, now));
    }
    decision
}

fn delete(pod: &ProbePod) -> Change {
    Change::Delete {
        name: pod.name.clone(),
        uid: pod.uid.clone(),
    }
}

/// The node that has waited longest of those with the fewest unsuccessful probes.
fn next(supply: &PoolSupply, proofs: &mut [UserNamespaceProof], now: Timestamp) -> Option<Change> {
    let candidates = supply.candidates.iter().zip(proofs.iter_mut());
    let due = candidates.filter(|(candidate, proof)| {
        let has_room = candidate.room.is_ok() && candidate.identity.is_some();
        has_room && proof.result != ProbeResult::Proven && is_due(proof, now)
    });
    let (_, proof) = due.min_by_key(|(_, proof)| (proof.attempts, at(proof)))?;
    begin(proof, now);
    Some(Change::Create {
        node: proof.node.clone(),
        identity: proof.identity.clone(),
    })
}

/// A failure is told until the next result.
fn begin(proof: &mut UserNamespaceProof, now: Timestamp) {
    if proof.result == ProbeResult::Unknown {
        proof.message.clear();
    }
    proof.result = ProbeResult::Probing;
    proof.at = now.to_string();
}

/// Whether the node can be probed again. A probe whose pod could not be created counts as no attempt, and waits for a while.
fn is_due(proof: &UserNamespaceProof, now: Timestamp) -> bool {
    let wait = match u32::try_from(proof.attempts) {
        Ok(0) | Err(_) if proof.result == ProbeResult::Unknown => START_SECONDS,
        Ok(0) | Err(_) => 0,
        Ok(attempts) => (WAIT_SECONDS << (attempts.min(7) - 1)).min(WAIT_SECONDS_MAX),
    };
    age(proof, now) >= wait
}

/// Seconds since the time of a proof.
fn age(proof: &UserNamespaceProof, now: Timestamp) -> i64 {
    now.as_second() - at(proof).as_second()
}

/// What is known of one node.
struct Node<'a> {
    candidate: &'a Candidate,
    /// The probe pod of the pool, of this node or of another one.
    pod: Option<&'a ProbePod>,
    failed: Option<&'a FailedStart>,
    now: Timestamp,
}

type After = (UserNamespaceProof, Option<Outcome>);

impl Node<'_> {
    fn after(&self, before: Option<&UserNamespaceProof>) -> After {
        let fresh = || UserNamespaceProof {
            node: self.candidate.node.clone(),
            ..UserNamespaceProof::default()
        };
        let Some(identity) = &self.candidate.identity else {
            // What was proven holds again if the same versions are reported again.
            let mut proof = before.cloned().unwrap_or_else(fresh);
            if matches!(proof.result, ProbeResult::Probing | ProbeResult::Unknown) {
                proof.result = ProbeResult::Unknown;
                proof.message = "the node or its agent does not report its versions".to_owned();
            }
            return (proof, None);
        };
        let same = before.filter(|proof| proof.identity == *identity).cloned();
        let mut proof = same.unwrap_or_else(|| UserNamespaceProof {
            identity: identity.clone(),
            ..fresh()
        });
        // The clock of the operator that wrote it may be ahead.
        if at(&proof) > self.now {
            proof.at = self.now.to_string();
        }
        let own = self
            .pod
            .filter(|pod| pod.node == proof.node && pod.identity == *identity);
        match (proof.result, own) {
            (ProbeResult::Probing, Some(pod)) => self.probing(proof, pod),
            // It was created a moment ago.
            (ProbeResult::Probing, None) if age(&proof, self.now) < START_SECONDS => (proof, None),
            (ProbeResult::Probing, None) => self.interrupted(proof, "the probe pod was deleted"),
            (ProbeResult::Proven, _) => self.proven(proof),
            // An operator created it and ended before it stored that.
            (ProbeResult::Failed | ProbeResult::Unknown, Some(pod)) if is_due(&proof, self.now) => {
                begin(&mut proof, self.now);
                self.probing(proof, pod)
            }
            (ProbeResult::Unknown, _) if proof.attempts == 0 => {
                let why = self.candidate.room.as_ref().err();
                proof.message = why.map_or_else(|| "waits for its probe".to_owned(), |why| bounded(why));
                (proof, None)
            }
            (ProbeResult::Failed | ProbeResult::Unknown, _) => (proof, None),
        }
    }

    /// A node whose probe pod exists.
    fn probing(&self, proof: UserNamespaceProof, pod: &ProbePod) -> After {
        let age = age(&proof, self.now);
        let trouble = pod.trouble.as_deref();
        match &pod.end {
            Some(ProbeEnd::Proven) => {
                let proven = UserNamespaceProof {
                    result: ProbeResult::Proven,
                    at: self.now.to_string(),
                    attempts: 0,
                    message: String::new(),
                    ..proof
                };
                (proven, Some(Outcome::Proven))
            }
            Some(ProbeEnd::Failed(words)) => self.failed(proof, words),
            Some(ProbeEnd::Lost(words)) => self.interrupted(proof, words),
            None if pod.is_leaving => self.interrupted(proof, "the probe pod was deleted"),
            None if !pod.is_bound && age >= START_SECONDS => {
                self.interrupted(proof, trouble.unwrap_or("the probe pod was not scheduled"))
            }
            None if pod.is_bound && trouble.is_some() && age >= START_SECONDS => {
                self.failed(proof, trouble.unwrap_or_default())
            }
            None if pod.is_bound && age >= END_SECONDS => {
                self.failed(proof, "the probe pod did not end within two minutes")
            }
            None => (proof, None),
        }
    }

    fn proven(&self, proof: UserNamespaceProof) -> After {
        let withdraws = self
            .failed
            .filter(|_| age(&proof, self.now) >= WITHDRAWN_AFTER_SECONDS);
        let Some(failed) = withdraws else {
            return (proof, None);
        };
        let withdrawn = UserNamespaceProof {
            result: ProbeResult::Failed,
            at: self.now.to_string(),
            message: bounded(&failed.words),
            ..proof
        };
        (withdrawn, Some(Outcome::Withdrawn))
    }

    fn failed(&self, proof: UserNamespaceProof, words: &str) -> After {
        (
            self.unproven(proof, ProbeResult::Failed, words),
            Some(Outcome::Failed),
        )
    }

    fn interrupted(&self, proof: UserNamespaceProof, words: &str) -> After {
        let interrupted = self.unproven(proof, ProbeResult::Unknown, words);
        (interrupted, Some(Outcome::Interrupted))
    }

    fn unproven(&self, proof: UserNamespaceProof, result: ProbeResult, words: &str) -> UserNamespaceProof {
        unproven(proof, result, words, self.now)
    }
}

fn unproven(
    proof: UserNamespaceProof,
    result: ProbeResult,
    words: &str,
    now: Timestamp,
) -> UserNamespaceProof {
    UserNamespaceProof {
        result,
        at: now.to_string(),
        attempts: (proof.attempts + 1).min(ATTEMPTS_MAX),
        message: bounded(words),
        ..proof
    }
}

/// The proofs after the pod of a node was not created. `refusal` are the words in which the cluster refused it: a pod of a lease
/// would be refused as well. Without them the API server was not available, and the pod is created later.
#[must_use]
pub fn not_created(
    mut proofs: Vec<UserNamespaceProof>,
    node: &str,
    refusal: Option<&str>,
    now: Timestamp,
) -> (Vec<UserNamespaceProof>, Option<Finished>) {
    let Some(proof) = proofs.iter_mut().find(|proof| proof.node == node) else {
        return (proofs, None);
    };
    let Some(words) = refusal else {
        proof.result = ProbeResult::Unknown;
        proof.message = "the probe pod could not be created".to_owned();
        return (proofs, None);
    };
    *proof = unproven(proof.clone(), ProbeResult::Failed, words, now);
    let finished = Finished {
        node: node.to_owned(),
        outcome: Outcome::Failed,
        message: proof.message.clone(),
    };
    (proofs, Some(finished))
}

/// The beginning and the end of a message: runtimes name the cause last.
fn bounded(words: &str) -> String {
    let words: Vec<char> = text::printable(words).chars().collect();
    if words.len() <= MESSAGE_MAX {
        return words.into_iter().collect();
    }
    let (beginning, end) = words.split_at(MESSAGE_MAX / 3);
    let rest = MESSAGE_MAX - beginning.len() - 1;
    let end = &end[end.len() - rest..];
    beginning.iter().chain(&['…']).chain(end).collect()
}
