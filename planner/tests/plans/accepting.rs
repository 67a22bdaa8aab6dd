//! A provider's answer to an allocation: an acceptance, or every reason to decline.

use leasehold_crds::{
    GpuLease,
    lease::{
        OnFundsEnd,
        workload::{Container, EnvVar, Job, JobOutput, Session, Storage, Workload},
    },
    market::allocation::DeclineReason,
};

use crate::{site::Site, snapshot};

#[test]
fn allocation_accepted() {
    let mut site = Site::new(
        "A provider reserves a node, and follows later changes of the allocation.",
        |_| {},
    );
    site.answer("The market asks to host a node.");
    site.answer("The acceptance is signed.");
    site.later(600);
    site.allocation.spec.not_after += 3600;
    site.allocation.metadata.generation = Some(2);
    site.answer("The tenant has extended the term; the market sets a later notAfter.");
    site.allocation.spec.not_after += 100 * 3600;
    site.allocation.metadata.generation = Some(3);
    site.answer("The market sets a notAfter beyond the longest term of the pool.");
    site.allocation.spec.release = true;
    site.allocation.metadata.generation = Some(4);
    site.answer("The market releases the allocation.");
    snapshot("allocation_accepted", &site.page);
}

fn job(keep_results_for: &str) -> impl FnOnce(&mut GpuLease) {
    let output = JobOutput {
        path: "/data/out".into(),
        keep_results_for: keep_results_for.into(),
        recipients: vec!["age1zvkyg2lqzraa2lnjvqej32nkuu0ues2s82hzrye869xeexvn73equnujwj".into()],
    };
    move |lease| {
        lease.spec.storage = volume("10Gi");
        lease.spec.workload = Workload {
            job: Some(Box::new(Job {
                output: Some(output),
                ..Job::default()
            })),
            ..Workload::default()
        };
    }
}

fn volume(size: &str) -> Option<Storage> {
    Some(Storage {
        size: size.into(),
        mount_path: "/data".into(),
    })
}

fn session(lease: &mut GpuLease) {
    lease.spec.workload = Workload {
        session: Some(Box::new(Session::default())),
        ..Workload::default()
    };
}

fn with_variable(name: &str) -> Workload {
    let container = Container {
        env: vec![EnvVar {
            name: name.into(),
            value: "enabled".into(),
        }],
        ..Container::default()
    };
    Workload {
        job: Some(Box::new(Job {
            container,
            output: None,
        })),
        ..Workload::default()
    }
}

/// An allocation that is declined for that reason.
fn declined(reason: DeclineReason) -> Site {
    let about = format!("A provider declines: {reason}.");
    let new = || Site::new(&about, |_| {});
    let mut site = match reason {
        DeclineReason::RootNotAllowed => Site::new(&about, session),
        DeclineReason::BadResults | DeclineReason::ResultsTooLong => Site::new(&about, job("2h")),
        DeclineReason::PauseTooLong => Site::new(&about, |lease| {
            lease.spec.payment.on_funds_end = OnFundsEnd::Pause;
            lease.spec.payment.pause_for = Some("2h".into());
        }),
        DeclineReason::StorageTooLarge => Site::new(&about, |lease| lease.spec.storage = volume("50Gi")),
        _ => new(),
    };
    let spec = &mut site.allocation.spec;
    let pool = site.pool.as_mut().unwrap();
    match reason {
        DeclineReason::BadDeadline => spec.open_by = site.now,
        DeclineReason::BadPrice => pool.spec.price_per_gpu_hour = "free".into(),
        DeclineReason::BadResults => spec.storage = None,
        DeclineReason::BadShape => spec.per_node.memory = "much".into(),
        DeclineReason::BadTerms => spec.escrow.payer = spec.escrow.market.clone(),
        DeclineReason::NameMismatch => site.allocation.metadata.name = Some("kube-system".into()),
        DeclineReason::DepositTooSmall => spec.deposit = "1799999".into(),
        DeclineReason::NoPaymentNetwork => site.currency = None,
        DeclineReason::NoRoom => site.supply.free.clear(),
        DeclineReason::NotSelling => site.supply.selling = false,
        DeclineReason::OtherMoney => spec.escrow.chain_id = 1,
        DeclineReason::OtherPayee => spec.escrow.legs[0].payee = spec.escrow.market.clone(),
        DeclineReason::PauseTooLong => pool.spec.max_pause = "1h".into(),
        DeclineReason::PodsRefused => {
            site.refusal = Some("pods \"lease-0\" is forbidden: exceeded quota: team");
        }
        DeclineReason::PriceTooLow => pool.spec.price_per_gpu_hour = "1.85".into(),
        DeclineReason::ReservedVariable => spec.workload = with_variable("NVIDIA_MOFED"),
        DeclineReason::ResultsTooLong => pool.spec.max_keep_results_for = "1h".into(),
        DeclineReason::RootNotAllowed => site
            .supply
            .free
            .iter_mut()
            .for_each(|n| n.user_namespaces = false),
        DeclineReason::BeyondMaxPerGpu => site
            .supply
            .free
            .iter_mut()
            .for_each(|n| n.max_per_gpu.millicores = 1),
        DeclineReason::StartTooLate => pool.spec.max_start_within = Some("1m".into()),
        DeclineReason::StorageTooLarge => pool.spec.storage.as_mut().unwrap().max_size = "20Gi".into(),
        DeclineReason::TooLong => spec.not_after += 100 * 3600,
        DeclineReason::UnknownPool => site.pool = None,
    }
    site
}

#[test]
fn every_reason_to_decline() {
    for reason in DeclineReason::ALL {
        let mut site = declined(*reason);
        let plan = site.answer("The market asks to host a node.");
        assert_eq!(plan.status.declined.unwrap().reason, reason.as_str());
        snapshot(&format!("decline_{reason}"), &site.page);
    }
}
