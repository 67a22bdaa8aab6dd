use leasehold_crds::{
    lease::workload::{Container, EnvVar, Job, JobOutput, NodeShape, ResultsAt, Session, Storage, Workload},
    market::allocation::GpuAllocationSpec,
    payment::escrow::{EscrowLeg, EscrowTerms},
    provider::{
        pool::{GpuPoolSpec, PoolStorage},
        reservation::GpuReservationStatus,
    },
};

use super::*;
use crate::{
    escrow::{Hash, account_id},
    provider::offer::supply::FreeNode,
    request::PerGpu,
};

mod created_again;

const NOW: i64 = 1_800_000_000;
/// What the time between `startBy` and `notAfter` costs, without the 300 s to settle.
const PAID: u64 = 500 * 2_700;

fn now() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

fn identity() -> Identity {
    Identity {
        market: "default".into(),
        payee: Address([1; 20]),
        controller: Address([2; 20]),
    }
}

fn currency() -> Currency {
    Currency {
        chain_id: 31_337,
        escrow: Address([3; 20]),
        token: Address([4; 20]),
    }
}

/// Sells an hour at 1.80 (a rate of 500 base units per GPU-second at 6 decimals).
fn pool() -> GpuPool {
    GpuPool::new(
        "main",
        GpuPoolSpec {
            price_per_gpu_hour: "1.80".into(),
            max_duration: "1h".into(),
            max_pause: "0s".into(),
            max_keep_results_for: "2h".into(),
            runtime_class_name: Some("nvidia".into()),
            storage: Some(PoolStorage {
                class_name: Some("fast".into()),
                max_size: "10Gi".into(),
            }),
            ..GpuPoolSpec::default()
        },
    )
}

fn allocation() -> GpuAllocation {
    let (payer, salt) = (Address([5; 20]), Hash([6; 32]));
    let node = NodeShape {
        cpu: "1".into(),
        memory: "1Gi".into(),
        ephemeral_storage: "1Gi".into(),
        gpus: 1,
    };
    let terms = EscrowTerms {
        chain_id: 31_337,
        contract: currency().escrow.to_string(),
        id: account_id(payer, salt).to_string(),
        payer: payer.to_string(),
        market: Address([7; 20]).to_string(),
        token: currency().token.to_string(),
        closer: Address([8; 20]).to_string(),
        salt: salt.to_string(),
        start_by: NOW + 900,
        notice_seconds: 0,
        pause_for: 0,
        legs: vec![EscrowLeg {
            payee: identity().payee.to_string(),
            controller: identity().controller.to_string(),
            rate: "500000000000000".into(),
        }],
    };
    let mut allocation = GpuAllocation::new(
        &allocation_name(account_id(payer, salt), 0),
        GpuAllocationSpec {
            round: 1,
            escrow: terms,
            deposit: PAID.to_string(),
            open_by: NOW + 60,
            pool: "main".into(),
            nodes: 1,
            per_node: node,
            not_after: NOW + 3_900,
            ..GpuAllocationSpec::default()
        },
    );
    allocation.metadata.uid = Some("uid".into());
    allocation
}

fn supply() -> PoolSupply {
    PoolSupply {
        selling: true,
        free: vec![FreeNode {
            pods_free: 110,
            name: "node-1".into(),
            room: Shape {
                gpus: 4,
                millicores: 8_000,
                memory: 1 << 34,
                scratch: 1 << 34,
            },
            user_namespaces: true,
            max_per_gpu: PerGpu::UNBOUNDED,
        }],
        overhead: Some(Shape::default()),
        ..PoolSupply::default()
    }
}

fn decided(allocation: &GpuAllocation, reservation: Option<&GpuReservation>) -> Plan {
    decided_with(allocation, reservation, &supply())
}

fn decided_with(
    allocation: &GpuAllocation,
    reservation: Option<&GpuReservation>,
    supply: &PoolSupply,
) -> Plan {
    let (pool, identity) = (pool(), identity());
    let seen = PoolSeen {
        pool: &pool,
        supply,
        currency: Some((currency(), 6)),
    };
    let world = World {
        allocation,
        reservation,
        pool: Some(seen),
        identity: &identity,
    };
    decide(&world, now())
}

fn reserved() -> GpuReservation {
    let plan = decided(&allocation(), None);
    let spec = plan
        .reserve
        .unwrap_or_else(|| panic!("{:?}", plan.status.declined));
    GpuReservation::new(&spec.allocation_name.clone(), *spec)
}

#[test]
fn a_lease_whose_pods_the_cluster_refuses_is_declined_in_the_words_of_the_refusal() {
    let allocation = allocation();
    let plan = decided(&allocation, None);
    let spec = plan.to_admit(None).unwrap();
    assert_eq!(Some(spec), plan.reserve.as_deref());
    let words = "pods \"lease-0\" is forbidden: exceeded quota: team";
    let status = plan.refused(words).status;
    assert_eq!(
        (status.phase, status.acceptance),
        (AllocationPhase::Declined, None)
    );
    let declined = status.declined.unwrap();
    assert_eq!(declined.reason, "PodsRefused");
    assert!(declined.message.ends_with(words), "{}", declined.message);
    // What is reserved already was admitted.
    let reserved = reserved();
    assert_eq!(
        decided(&allocation, Some(&reserved)).to_admit(Some(&reserved)),
        None
    );
}

#[test]
fn a_reservation_keeps_how_its_pool_and_nodes_were() {
    let hosting = reserved().spec.hosting;
    assert_eq!(hosting.runtime_class_name.as_deref(), Some("nvidia"));
    assert_eq!(hosting.storage_class_name.as_deref(), Some("fast"));
    assert!(hosting.user_namespaces);
}

#[test]
fn not_after_follows_the_market_up_to_the_longest_term_sold() {
    let reservation = reserved();
    let longest = NOW + 3_600 + 7_200;
    let granted = |not_after| {
        let mut allocation = allocation();
        allocation.spec.not_after = not_after;
        let plan = decided(&allocation, Some(&reservation));
        plan.reserve.map(|r| r.allocation.not_after)
    };
    assert_eq!(granted(NOW + 3_900), None, "nothing changed");
    assert_eq!(granted(NOW + 5_000), Some(NOW + 5_000));
    assert_eq!(
        granted(NOW + 1_000_000),
        Some(longest),
        "not beyond the longest term sold"
    );
    assert_eq!(granted(NOW + 100), None, "never lowered");
}

#[test]
fn what_is_not_ours_to_sell_is_declined_with_the_reason() {
    let reason = |change: fn(&mut GpuAllocationSpec)| {
        let mut allocation = allocation();
        change(&mut allocation.spec);
        let plan = decided(&allocation, None);
        assert_eq!(plan.reserve, None);
        plan.status.declined.unwrap().reason
    };
    assert_eq!(
        reason(|s| s.escrow.legs[0].rate = "499999999999999".into()),
        "PriceTooLow"
    );
    assert_eq!(
        reason(|s| s.escrow.legs[0].payee = Address([9; 20]).to_string()),
        "OtherPayee"
    );
    assert_eq!(reason(|s| s.escrow.chain_id = 1), "OtherMoney");
    assert_eq!(reason(|s| s.deposit = "0".into()), "DepositTooSmall");
    assert_eq!(reason(|s| s.open_by = NOW - 1), "BadDeadline");
    assert_eq!(reason(|s| s.not_after = NOW + 1_000_000), "TooLong");
    assert_eq!(reason(|s| s.per_node.memory = "1Ti".into()), "NoRoom");
}

/// A hostile market asks for a node until `notAfter` and deposits one base unit, or lets the leg start in 30,000 years.
#[test]
fn what_is_not_paid_or_may_start_too_late_is_declined() {
    let answer = |change: &dyn Fn(&mut GpuAllocationSpec)| {
        let mut allocation = allocation();
        change(&mut allocation.spec);
        decided(&allocation, None).status.declined.map(|d| d.reason)
    };
    let small = || Some("DepositTooSmall".to_owned());
    assert_eq!(answer(&|_| {}), None);
    for deposit in [0, 1, PAID - 1] {
        assert_eq!(answer(&|s| s.deposit = deposit.to_string()), small(), "{deposit}");
    }
    assert_eq!(answer(&|s| s.deposit = "much".into()), small());
    assert_eq!(answer(&|s| s.not_after += 1), small());
    // Less is paid where less is asked for: a lease that is topped up begins with an early `notAfter`.
    let early =
        |deposit: u64| answer(&|s| (s.not_after, s.deposit) = (NOW + 900 + 300 + 60, deposit.to_string()));
    assert_eq!((early(500 * 60), early(500 * 60 - 1)), (None, small()));
    // At least the shortest term, whatever `notAfter` is.
    let shortest = |deposit: u64| answer(&|s| (s.not_after, s.deposit) = (NOW, deposit.to_string()));
    assert_eq!((shortest(500 * 10), shortest(500 * 10 - 1)), (None, small()));
    // The other legs burn the same deposit.
    let other = identity().payee.to_string();
    let with_another = |s: &mut GpuAllocationSpec| {
        let leg = EscrowLeg {
            payee: other.clone(),
            ..s.escrow.legs[0].clone()
        };
        s.escrow.legs.push(leg);
    };
    assert_eq!(answer(&with_another), small());
    // A pause is not paid, but only a lease that pauses has one.
    assert_eq!(
        answer(&|s| (s.escrow.pause_for, s.deposit) = (2_700, "5000".into())),
        small()
    );

    let late = || Some("StartTooLate".to_owned());
    let start_by = |start_by| answer(&|s| s.escrow.start_by = start_by);
    assert_eq!(start_by(NOW + 60 + 3_600), None);
    assert_eq!(start_by(NOW + 60 + 3_601), late());
    assert_eq!(start_by((1 << 40) - 1), late());
}

/// The reservation and its namespace are named after the allocation, so a market that chose the name would choose which
/// namespace of the provider is written and deleted.
#[test]
fn the_name_of_an_allocation_follows_from_its_account_and_leg() {
    let own = allocation().metadata.name.unwrap();
    for name in [
        "kube-system",
        "lease-x-0",
        &own.replace("-0", "-1"),
        &format!("{own}0"),
    ] {
        let mut allocation = allocation();
        allocation.metadata.name = Some(name.to_owned());
        let plan = decided(&allocation, None);
        assert_eq!((plan.reserve, plan.accept), (None, None), "{name}");
        assert_eq!(plan.status.declined.unwrap().reason, "NameMismatch", "{name}");
    }
    assert!(decided(&allocation(), None).reserve.is_some());
}

#[test]
fn a_session_is_only_where_its_tenant_can_be_root_in_a_user_namespace() {
    let answer = |workload: Workload, nodes: i64, user_namespaces: &[bool]| {
        let mut allocation = allocation();
        allocation.spec.workload = workload;
        allocation.spec.nodes = nodes;
        allocation.spec.escrow.legs[0].rate = "1000000000000000".into();
        allocation.spec.deposit = (2 * PAID).to_string();
        let template = supply().free[0].clone();
        let mut supply = supply();
        supply.free = user_namespaces
            .iter()
            .enumerate()
            .map(|(i, has)| FreeNode {
                pods_free: 110,
                name: format!("n{i}"),
                user_namespaces: *has,
                ..template.clone()
            })
            .collect();
        let plan = decided_with(&allocation, None, &supply);
        match (plan.reserve, plan.status.declined) {
            (Some(spec), None) => Ok(spec.nodes),
            (None, Some(declined)) => Err(declined.reason),
            other => panic!("{other:?}"),
        }
    };
    let session = || Workload {
        session: Some(Box::new(Session::default())),
        ..Workload::default()
    };
    assert_eq!(answer(session(), 1, &[false, true]), Ok(vec!["n1".to_owned()]));
    assert_eq!(answer(session(), 1, &[false]), Err("RootNotAllowed".to_owned()));
    assert_eq!(
        answer(session(), 2, &[false, true]),
        Err("RootNotAllowed".to_owned())
    );
    assert_eq!(answer(session(), 2, &[true]), Err("NoRoom".to_owned()));
    let job = |run_as_user: Option<i64>| Workload {
        job: Some(Box::new(Job {
            container: Container {
                run_as_user,
                ..Container::default()
            },
            ..Job::default()
        })),
        ..Workload::default()
    };
    assert_eq!(
        answer(job(None), 1, &[false]),
        Err("RootNotAllowed".to_owned()),
        "the image may be root, and its container would never start"
    );
    assert_eq!(answer(job(Some(1000)), 1, &[false]), Ok(vec!["n0".to_owned()]));
    assert_eq!(answer(job(None), 1, &[true]), Ok(vec!["n0".to_owned()]));
}

#[test]
fn one_gpu_does_not_take_a_whole_node() {
    let mut supply = supply();
    supply.free[0].max_per_gpu = PerGpu {
        millicores: 2_000,
        ..PerGpu::UNBOUNDED
    };
    let reason = |cpu: &str| {
        let mut allocation = allocation();
        allocation.spec.per_node.cpu = cpu.into();
        let gpus = allocation.spec.per_node.gpus;
        let plan = decided_with(&allocation, None, &supply);
        (gpus, plan.status.declined.map(|d| d.reason))
    };
    let (gpus, _) = reason("1");
    assert_eq!(reason(&(gpus * 2).to_string()).1, None);
    let more = format!("{}m", gpus * 2_000 + 1);
    assert_eq!(reason(&more).1.as_deref(), Some("BeyondMaxPerGpu"));
}

#[test]
fn a_lease_starts_within_what_the_pool_permits_and_not_after_allows_for_it() {
    let plan = |start_within: i64, most: &str| {
        let mut allocation = allocation();
        allocation.spec.escrow.start_by = allocation.spec.open_by + start_within;
        let terms = Terms::from_wire(&allocation.spec.escrow).unwrap();
        allocation.metadata.name = Some(allocation_name(terms.id(), 0));
        let (mut pool, identity, supply) = (pool(), identity(), supply());
        pool.spec.max_start_within = Some(most.into());
        let seen = PoolSeen {
            pool: &pool,
            supply: &supply,
            currency: Some((currency(), 6)),
        };
        let world = World {
            allocation: &allocation,
            reservation: None,
            pool: Some(seen),
            identity: &identity,
        };
        let plan = decide(&world, now());
        match plan.reserve {
            Some(spec) => Ok(spec.hosting.not_after_max - NOW),
            None => Err(plan.status.declined.map(|d| d.reason).unwrap_or_default()),
        }
    };
    assert_eq!(plan(3_600, "1h"), Ok(3_600 + 3_600 + 3_600));
    assert_eq!(plan(3_601, "1h"), Err("StartTooLate".to_owned()));
    assert_eq!(plan(3_601, "24h"), Ok(3_600 + 86_400 + 3_600));
}

#[test]
fn variables_that_the_provider_sets_are_declined() {
    let answer = |names: &[&str]| {
        let mut allocation = allocation();
        let env = names.iter().map(|name| EnvVar {
            name: (*name).into(),
            value: "enabled".into(),
        });
        let container = Container {
            env: env.collect(),
            ..Container::default()
        };
        allocation.spec.workload.job = Some(Box::new(Job {
            container,
            ..Job::default()
        }));
        let declined = decided(&allocation, None).status.declined;
        declined.map(|d| d.reason)
    };
    assert_eq!(answer(&["NCCL_DEBUG", "PATH"]), None);
    for names in [
        &["NVIDIA_GDRCOPY"][..],
        &["NVIDIA_VISIBLE_DEVICES"],
        &["LEASEHOLD_NODES"],
        &["A", "A"],
    ] {
        assert_eq!(answer(names).as_deref(), Some("ReservedVariable"), "{names:?}");
    }
}

fn with_output(keep: &str) -> GpuAllocation {
    let mut allocation = allocation();
    allocation.spec.storage = Some(Storage {
        size: "1Gi".into(),
        mount_path: "/data".into(),
    });
    allocation.spec.workload.job = Some(Box::new(Job {
        output: Some(JobOutput {
            path: "/data/out".into(),
            keep_results_for: keep.into(),
            recipients: vec!["age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj".into()],
        }),
        ..Job::default()
    }));
    allocation
}

#[test]
fn results_are_kept_no_longer_than_the_pool_says() {
    let reason = |allocation: &GpuAllocation| decided(allocation, None).status.declined.map(|d| d.reason);
    assert_eq!(reason(&with_output("2h")), None);
    assert_eq!(reason(&with_output("2h1s")).as_deref(), Some("ResultsTooLong"));
    // What the market let through is checked again.
    let mut outside = with_output("2h");
    if let Some(output) = outside.spec.workload.job.as_mut().and_then(|j| j.output.as_mut()) {
        output.path = "/etc".into();
    }
    assert_eq!(reason(&outside).as_deref(), Some("BadResults"));
}

#[test]
fn where_results_are_is_told_and_that_they_are_dropped_is_heard() {
    let mut reservation = reserved();
    let at = ResultsAt {
        node: 0,
        url: "http://192.0.2.1:30000/uid".into(),
        until: None,
    };
    reservation.status = Some(GpuReservationStatus {
        results: vec![at.clone()],
        ..GpuReservationStatus::default()
    });
    let mut allocation = allocation();
    allocation.spec.release = true;
    allocation.spec.drop_results = true;
    let plan = decided(&allocation, Some(&reservation));
    assert_eq!(plan.status.results, [at]);
    let followed = plan.reserve.unwrap();
    assert!(followed.release && followed.allocation.drop_results);
}
