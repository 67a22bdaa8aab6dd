//! Which node is probed when, what a probe has shown, and when it is repeated.

use leasehold_crds::provider::pool::{GpuPoolSpec, GpuPoolStatus};

use super::*;

mod pods;

const HOUR: i64 = 3600;

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

/// A pool with its proofs and its probe pods, over time.
struct Pool {
    object: GpuPool,
    supply: PoolSupply,
    pods: Vec<ProbePod>,
    failed: Vec<FailedStart>,
}

impl Pool {
    fn of(nodes: &[&str]) -> Self {
        let candidate = |node: &&str| Candidate {
            node: (*node).into(),
            identity: Some("boot 1".into()),
            room: Ok(()),
        };
        Self {
            object: GpuPool::new("h100", GpuPoolSpec::default()),
            supply: PoolSupply {
                candidates: nodes.iter().map(candidate).collect(),
                overhead: Some(Shape::default()),
                ..PoolSupply::default()
            },
            pods: Vec::new(),
            failed: Vec::new(),
        }
    }

    /// Decides, and keeps the proofs. Pods are created and deleted as decided.
    fn decide(&mut self, second: i64) -> Decision {
        let world = World {
            pool: &self.object,
            supply: &self.supply,
            pods: &self.pods,
            failed_starts: &self.failed,
        };
        let decision = decide(&world, time(second));
        self.object.status = Some(GpuPoolStatus {
            user_namespaces: decision.proofs.clone(),
            ..GpuPoolStatus::default()
        });
        for change in &decision.changes {
            match change {
                Change::Create { node, identity } => self.pods.push(ProbePod {
                    name: "probe-h100".into(),
                    uid: format!("uid-{second}"),
                    pool: "h100".into(),
                    node: node.clone(),
                    identity: identity.clone(),
                    is_bound: true,
                    is_leaving: false,
                    trouble: None,
                    end: None,
                }),
                Change::Delete { uid, .. } => self.pods.retain(|pod| pod.uid != *uid),
            }
        }
        decision
    }

    /// Probes the node that is due, with that end, and deletes the pod.
    fn probed(&mut self, second: i64, end: ProbeEnd) -> Finished {
        self.decide(second);
        self.pods[0].end = Some(end);
        let mut finished = self.decide(second + 3).finished;
        assert_eq!(self.pods.len(), 1, "a pod stays until its result is stored");
        assert_eq!(self.decide(second + 3).finished, [], "a result counts once");
        assert!(self.pods.is_empty());
        finished.remove(0)
    }

    fn proof(&self, node: &str) -> UserNamespaceProof {
        proofs(&self.object)[node].clone()
    }

    fn results(&self) -> Vec<ProbeResult> {
        proofs(&self.object).values().map(|p| p.result).collect()
    }
}

use ProbeResult::{Failed, Probing, Proven, Unknown};

#[test]
fn nodes_are_probed_one_after_the_other_and_proven_once() {
    let mut pool = Pool::of(&["a", "b"]);
    let begun = pool.decide(0);
    let create = |node: &str| Change::Create {
        node: node.into(),
        identity: "boot 1".into(),
    };
    assert_eq!(begun.changes, [create("a")]);
    assert_eq!(pool.results(), [Probing, Unknown]);
    assert_eq!(pool.proof("b").message, "waits for its probe");
    assert_eq!(pool.decide(1).changes, [], "one pod at a time");
    pool.pods[0].end = Some(ProbeEnd::Proven);
    let ended = pool.decide(2);
    let proven = Finished {
        node: "a".into(),
        outcome: Outcome::Proven,
        message: String::new(),
    };
    assert_eq!((ended.finished, ended.changes), (vec![proven], vec![]));
    assert!(matches!(
        pool.decide(2).changes.as_slice(),
        [Change::Delete { .. }]
    ));
    assert_eq!(pool.decide(3).changes, [create("b")]);
    pool.pods[0].end = Some(ProbeEnd::Proven);
    for second in [4, 4, 5, 100 * HOUR] {
        pool.decide(second);
    }
    assert_eq!(pool.results(), [Proven, Proven]);
    assert!(pool.pods.is_empty());
    assert_eq!(root_allowed(&pool.object, &pool.supply).0, ConditionStatus::True);
}

#[test]
fn a_probe_that_failed_is_told_in_its_own_words_and_repeated_ever_later() {
    let mut pool = Pool::of(&["a"]);
    let words = || ProbeEnd::Failed("nvidia-container-cli: operation not permitted".into());
    let finished = pool.probed(0, words());
    assert_eq!(finished.outcome, Outcome::Failed);
    assert_eq!(pool.results(), [Failed]);
    let (status, reason, message) = root_allowed(&pool.object, &pool.supply);
    assert_eq!(
        (status, reason),
        (ConditionStatus::False, PoolReason::ProbeFailed)
    );
    let told = "containers can be root on 0 of 1 nodes; a: nvidia-container-cli: operation not permitted";
    assert_eq!(message, told);
    let (mut second, mut waits) = (3, Vec::new());
    for _ in 0..8 {
        let wait = (0..)
            .step_by(60)
            .find(|w| !pool.decide(second + w).changes.is_empty())
            .unwrap();
        waits.push(wait / 60);
        second += wait;
        pool.pods.clear();
        pool.decide(second + 40);
        assert_eq!(pool.results(), [Unknown], "somebody deleted the pod");
        second += 40;
    }
    assert_eq!(waits, [10, 20, 40, 80, 160, 320, 360, 360]);
    assert_eq!(
        pool.probed(second + 6 * HOUR, ProbeEnd::Proven).outcome,
        Outcome::Proven
    );
    assert_eq!(pool.proof("a").attempts, 0);
}

#[test]
fn a_node_with_other_software_is_probed_again_at_once() {
    let mut pool = Pool::of(&["a"]);
    pool.probed(0, ProbeEnd::Failed("no".into()));
    pool.supply.candidates[0].identity = Some("boot 2".into());
    assert_eq!(pool.probed(5, ProbeEnd::Proven).outcome, Outcome::Proven);
    assert_eq!(pool.proof("a").identity, "boot 2");
    // A report that is missing for a moment takes nothing away for good.
    pool.supply.candidates[0].identity = None;
    assert_eq!(pool.decide(20).changes, []);
    assert_eq!(pool.results(), [Proven]);
    // It changes while a pod runs: what that pod shows is of the node as it was.
    pool.supply.candidates[0].identity = Some("boot 3".into());
    pool.decide(30);
    pool.supply.candidates[0].identity = Some("boot 4".into());
    pool.pods[0].end = Some(ProbeEnd::Proven);
    assert!(matches!(
        pool.decide(31).changes.as_slice(),
        [Change::Delete { .. }]
    ));
    assert_eq!(pool.results(), [Unknown]);
    assert!(matches!(
        pool.decide(32).changes.as_slice(),
        [Change::Create { .. }]
    ));
}

#[test]
fn only_a_node_with_room_is_probed() {
    let mut pool = Pool::of(&["a", "b"]);
    pool.supply.candidates[0].room = Err("no GPU was free".into());
    pool.probed(0, ProbeEnd::Proven);
    assert_eq!(pool.results(), [Unknown, Proven]);
    assert_eq!(pool.decide(20).changes, []);
    let (status, reason, message) = root_allowed(&pool.object, &pool.supply);
    assert_eq!((status, reason), (ConditionStatus::Unknown, PoolReason::Probing));
    assert_eq!(
        message,
        "containers can be root on 1 of 2 nodes; a: no GPU was free"
    );
    pool.supply.candidates[0].room = Ok(());
    assert_eq!(pool.probed(30, ProbeEnd::Proven).node, "a");
}

#[test]
fn a_pod_that_tells_nothing_is_no_failure_and_one_that_does_not_start_is() {
    let after = |change: fn(&mut ProbePod), second: i64| {
        let mut pool = Pool::of(&["a"]);
        pool.decide(0);
        change(&mut pool.pods[0]);
        let decision = pool.decide(second);
        (
            pool.results()[0],
            pool.proof("a").message,
            decision.finished.len(),
        )
    };
    let nothing = |_: &mut ProbePod| {};
    assert_eq!(after(nothing, 149), (Probing, String::new(), 0));
    let overdue = "the probe pod did not end within two minutes".to_owned();
    assert_eq!(after(nothing, 150), (Failed, overdue, 1));
    let waits = |pod: &mut ProbePod| pod.trouble = Some("CreateContainerError: idmap".into());
    assert_eq!(after(waits, 29), (Probing, String::new(), 0));
    assert_eq!(
        after(waits, 30),
        (Failed, "CreateContainerError: idmap".into(), 1)
    );
    let unscheduled = |pod: &mut ProbePod| {
        pod.is_bound = false;
        pod.trouble = Some("0/1 nodes are available".into());
    };
    assert_eq!(after(unscheduled, 29), (Probing, String::new(), 0));
    assert_eq!(
        after(unscheduled, 30),
        (Unknown, "0/1 nodes are available".into(), 1)
    );
    let lost = |pod: &mut ProbePod| pod.end = Some(ProbeEnd::Lost("Preempted".into()));
    assert_eq!(after(lost, 1), (Unknown, "Preempted".into(), 1));
    let leaves = |pod: &mut ProbePod| pod.is_leaving = true;
    assert_eq!(after(leaves, 1).0, Unknown);
    let control = |pod: &mut ProbePod| {
        pod.end = Some(ProbeEnd::Failed(
            "\u{1b}[31m".to_owned() + &"x".repeat(999) + ": EPERM",
        ))
    };
    let (result, message, _) = after(control, 1);
    assert_eq!((result, message.chars().count()), (Failed, 256));
    assert!(
        !message.contains('\u{1b}') && message.ends_with("xx: EPERM"),
        "{message}"
    );
}

#[test]
fn a_process_that_comes_after_another_takes_over_its_pod() {
    // The pod was created, and its process ended before it stored that.
    let mut pool = Pool::of(&["a"]);
    pool.decide(0);
    pool.object.status = None;
    pool.pods[0].end = Some(ProbeEnd::Proven);
    assert_eq!(pool.decide(10).finished[0].outcome, Outcome::Proven);
    // The result was stored, and its process ended before it deleted the pod.
    assert!(matches!(
        pool.decide(10).changes.as_slice(),
        [Change::Delete { .. }]
    ));
    // The pod was seen to be created, and is gone with its result.
    let mut pool = Pool::of(&["a"]);
    pool.decide(0);
    pool.pods.clear();
    assert_eq!(pool.decide(29).finished, [], "it may not be seen yet");
    assert_eq!(pool.decide(30).finished[0].outcome, Outcome::Interrupted);
    // The clock of that process was an hour ahead.
    let mut pool = Pool::of(&["a"]);
    pool.decide(HOUR);
    pool.decide(0);
    assert_eq!(pool.decide(150).finished[0].outcome, Outcome::Failed);
}

#[test]
fn pods_of_nodes_and_pools_that_are_not_probed_are_deleted() {
    let mut pool = Pool::of(&["a"]);
    pool.decide(0);
    let stranger = ProbePod {
        name: "another".into(),
        uid: "another".into(),
        ..pool.pods[0].clone()
    };
    pool.pods.push(stranger);
    let delete = |name: &str, uid: &str| Change::Delete {
        name: name.into(),
        uid: uid.into(),
    };
    assert_eq!(pool.decide(1).changes, [delete("another", "another")]);
    // The pool has userNamespaces: Never now, or the node is gone.
    pool.supply.candidates.clear();
    let decision = pool.decide(2);
    assert_eq!(decision.changes, [delete("probe-h100", "uid-0")]);
    assert_eq!(decision.proofs, []);
}

#[test]
fn a_failed_start_of_a_lease_has_the_node_probed_again() {
    let mut pool = Pool::of(&["a", "b"]);
    pool.probed(0, ProbeEnd::Proven);
    pool.probed(10, ProbeEnd::Proven);
    let failed = || FailedStart {
        node: "a".into(),
        words: "pod lease-0 of a lease: MOUNT_ATTR_IDMAP".into(),
    };
    pool.failed = vec![failed()];
    assert_eq!(pool.decide(600).finished, [], "it was proven a moment ago");
    pool.failed.clear();
    assert_eq!(pool.decide(700).finished, []);
    pool.failed = vec![failed()];
    let withdrawn = pool.decide(800);
    assert_eq!(withdrawn.finished[0].outcome, Outcome::Withdrawn);
    assert_eq!(pool.results(), [Probing, Proven], "the next probe does not wait");
    assert_eq!(
        pool.proof("a").message,
        "pod lease-0 of a lease: MOUNT_ATTR_IDMAP"
    );
    assert_eq!(pool.pods[0].node, "a");
    pool.pods[0].end = Some(ProbeEnd::Proven);
    assert_eq!(pool.decide(805).finished[0].outcome, Outcome::Proven);
    assert_eq!(pool.results(), [Proven, Proven]);
    assert_eq!(pool.proof("a").message, "");
    pool.decide(810);
    // No GPU is free: it is not sold as root until one is.
    pool.supply.candidates[0].room = Err("no GPU was free".into());
    assert_eq!(pool.decide(2000).finished.len(), 1);
    assert_eq!(pool.results(), [Failed, Proven]);
}

#[test]
fn a_large_pool_is_listed_up_to_the_bound() {
    let names: Vec<String> = (0..600).map(|n| format!("n{n:03}")).collect();
    let mut pool = Pool::of(&names.iter().map(String::as_str).collect::<Vec<_>>());
    pool.decide(0);
    assert_eq!(pool.results().len(), 512);
    let all = pool
        .object
        .status
        .get_or_insert_default()
        .user_namespaces
        .iter_mut();
    all.for_each(|proof| proof.result = Proven);
    let (status, _, message) = root_allowed(&pool.object, &pool.supply);
    assert_eq!(status, ConditionStatus::Unknown);
    assert_eq!(
        message,
        "containers can be root on 512 of 600 nodes; only 512 nodes of a pool are probed"
    );
}

#[test]
fn a_pool_tells_why_nothing_is_probed() {
    let mut pool = Pool::of(&[]);
    let told = |pool: &Pool| root_allowed(&pool.object, &pool.supply).1;
    assert_eq!(told(&pool), PoolReason::NotReported);
    pool.object.spec.user_namespaces = UserNamespaces::Never;
    assert_eq!(told(&pool), PoolReason::NotPermitted);
}

#[test]
fn a_pod_that_the_cluster_refuses_is_a_failure_and_an_outage_is_none() {
    let mut pool = Pool::of(&["a"]);
    let proofs = pool.decide(0).proofs;
    let words = "the pods of a lease must have hostUsers: false";
    let (refused, finished) = not_created(proofs.clone(), "a", Some(words), time(0));
    assert_eq!((refused[0].result, refused[0].message.as_str()), (Failed, words));
    assert_eq!(refused[0].attempts, 1);
    assert_eq!(finished.unwrap().outcome, Outcome::Failed);
    let (later, finished) = not_created(proofs, "a", None, time(0));
    assert_eq!((later[0].result, later[0].attempts), (Unknown, 0));
    assert_eq!(finished, None);
    pool.pods.clear();
    pool.object.status.as_mut().unwrap().user_namespaces = later;
    assert_eq!(
        pool.decide(1).changes,
        [],
        "an outage of the API server is not met with writes"
    );
    assert_eq!(pool.decide(31).changes.len(), 1);
    assert_eq!(not_created(Vec::new(), "a", Some(words), time(0)), (vec![], None));
}

#[test]
fn the_newer_proof_of_each_node_counts() {
    let proof = |node: &str, result: ProbeResult, second: i64| UserNamespaceProof {
        node: node.into(),
        result,
        at: time(second).to_string(),
        ..UserNamespaceProof::default()
    };
    let own = [
        proof("a", Proven, 5),
        proof("b", Proven, 5),
        proof("c", Proven, 5),
    ];
    let stored = [
        proof("a", Probing, 5),
        proof("b", Failed, 6),
        proof("d", Failed, 1),
    ];
    let expected = [
        proof("a", Proven, 5),
        proof("b", Failed, 6),
        proof("c", Proven, 5),
        proof("d", Failed, 1),
    ];
    assert_eq!(
        newest(&own, &stored),
        expected,
        "a cache may be older than what was decided"
    );
}

/// A lease must not lose the GPU that it was promised to a probe.
#[test]
fn a_probe_holds_its_gpu_until_its_pod_requests_it() {
    let mut pool = Pool::of(&["a"]);
    let runtime = PoolRuntime {
        overhead: Shape {
            millicores: 250,
            ..Shape::default()
        },
        ..PoolRuntime::default()
    };
    assert!(holds(&pool.object, &runtime, []).is_empty());
    pool.decide(0);
    let held = holds(&pool.object, &runtime, []);
    assert_eq!(
        (held[0].nodes.as_slice(), held[0].shape.gpus),
        (&["a".to_owned()][..], 1)
    );
    assert_eq!(held[0].shape.millicores, 260, "with the overhead of its pod");
    assert!(
        holds(&pool.object, &runtime, &pool.pods).is_empty(),
        "the pod requests it"
    );
    pool.pods[0].pool = "another".into();
    assert_eq!(holds(&pool.object, &runtime, &pool.pods), held);
}
