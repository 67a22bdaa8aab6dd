//! Every reason for which a provider stops, and the pause that is none.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use leasehold_crds::{GpuLease, lease::OnFundsEnd, market::allocation::StopReason};
use leasehold_planner::observed::Observed;

use crate::{fixtures::at, site::Site, snapshot};

const UNREACHABLE: &str = "the chain can't be reached: connection refused";

fn pausing(lease: &mut GpuLease) {
    lease.spec.payment.on_funds_end = OnFundsEnd::Pause;
    lease.spec.payment.pause_for = Some("1h".into());
}

/// A reservation that stops for that reason in its last reconcile.
fn stopped(reason: StopReason) -> Site {
    let about = format!("A provider stops: {reason}.");
    let active = || Site::active(&about, |_| {});
    let reserved = || Site::reserved(&about, |_| {});
    let (mut site, what) = match reason {
        StopReason::Released => {
            let mut site = active();
            site.allocation.spec.release = true;
            site.answer("The market releases the allocation.");
            (site, "The reservation is released.")
        }
        StopReason::ReservationDeleted => {
            let mut site = active();
            let now = at(site.now);
            site.reservation.as_mut().unwrap().metadata.deletion_timestamp = Some(Time(now));
            (site, "The provider's administrator deletes the reservation.")
        }
        StopReason::AccountClosed => {
            let mut site = active();
            let now = site.unix();
            site.account().close(1, now);
            (site, "The payer has closed the account.")
        }
        StopReason::NeverStarted => {
            let mut site = reserved();
            site.open();
            site.reconcile("The market has opened the account.");
            site.later(960);
            (site, "The container has not run until startBy.")
        }
        StopReason::StartUnknown => {
            let mut site = reserved();
            site.open();
            site.reconcile("The market has opened the account.");
            site.chain_fails = Some(UNREACHABLE.into());
            site.later(960);
            site.reconcile("The chain cannot be read, and startBy has passed.");
            site.later(661);
            (site, "The grace of ten minutes is over.")
        }
        StopReason::NotResumed => {
            let mut site = Site::active(&about, pausing);
            site.later(3541);
            site.reconcile("The paid time is over.");
            let now = site.unix();
            site.account()
                .fund_to(leasehold_crds::payment::money::TokenAmount(3_600_000), now);
            site.reconcile("The tenant has added funds for an hour.");
            site.reconcile("The room of its pods is held.");
            site.later(901);
            (site, "The container has not run for a quarter of an hour.")
        }
        StopReason::AccountMismatch => {
            let mut site = reserved();
            site.mismatch = true;
            (site, "The chain shows other terms at the id of the account.")
        }
        StopReason::IsolationDropped => {
            let mut site = reserved();
            site.open();
            site.reconcile("The market has opened the account.");
            site.running.without_isolation = vec!["workload-0".into()];
            (site, "A webhook has removed hostUsers: false from the pod.")
        }
        StopReason::AllocationGone => {
            let mut site = reserved();
            site.allocation_exists = Observed::Known(false);
            site.reconcile("The market has deleted the unpaid allocation.");
            site.later(5);
            (site, "Five seconds later.")
        }
        StopReason::Unpaid => {
            let mut site = reserved();
            site.later(90);
            (
                site,
                "The deadline of the reservation has passed without a deposit.",
            )
        }
        StopReason::PaymentUnknown => {
            let mut site = reserved();
            site.chain_fails = Some(UNREACHABLE.into());
            site.later(90);
            site.reconcile("The deadline has passed, and the chain cannot be read.");
            site.later(601);
            (site, "Ten minutes later it still cannot be read.")
        }
        StopReason::FundsSpent => {
            let mut site = active();
            site.reconcile("The lease has been active for a minute.");
            site.later(3541);
            (site, "The paid time is over.")
        }
        StopReason::PauseOver => {
            let mut site = Site::active(&about, pausing);
            site.later(3541);
            site.reconcile("The paid time is over.");
            site.later(3600);
            (site, "Nobody has added funds within pauseFor.")
        }
        StopReason::NotAfter => {
            let mut site = active();
            let now = site.unix();
            site.account()
                .fund_to(leasehold_crds::payment::money::TokenAmount(9_000_000), now);
            site.reconcile("Somebody has paid for five hours, and the market does not set a later notAfter.");
            site.later(4800);
            (site, "notAfter has passed.")
        }
        StopReason::FundsUnknown => {
            let mut site = active();
            site.chain_fails = Some(UNREACHABLE.into());
            site.reconcile("The chain cannot be read.");
            site.later(3540);
            site.reconcile("The paid time is over as far as is known; the grace of ten minutes begins.");
            site.later(601);
            (site, "The grace is over.")
        }
        StopReason::BadTerms => {
            let mut site = active();
            site.reservation
                .as_mut()
                .unwrap()
                .spec
                .allocation
                .escrow
                .legs
                .clear();
            (site, "The terms of the reservation cannot be read.")
        }
    };
    site.reconcile(what);
    site
}

#[test]
fn every_reason_to_stop() {
    for reason in StopReason::ALL {
        let site = stopped(*reason);
        assert_eq!(site.status().stop_reason, Some(*reason));
        snapshot(&format!("stop_{reason}"), &site.page);
    }
}

#[test]
fn reservation_paused_and_resumed() {
    let mut site = Site::active(
        "The funds of a lease with onFundsEnd: Pause are spent, and the tenant adds some.",
        pausing,
    );
    site.later(3541);
    site.reconcile("The paid time is over.");
    site.later(5);
    site.reconcile("Five seconds later.");
    site.later(600);
    let now = site.unix();
    site.account()
        .fund_to(leasehold_crds::payment::money::TokenAmount(3_600_000), now);
    site.reconcile("The tenant has added funds for an hour.");
    site.reconcile("The room of its pods is held.");
    site.later(20);
    site.pods_run();
    site.reconcile("The container runs again.");
    site.reconcile("The intent is stored.");
    site.later(1);
    site.reconcile("The transaction is mined.");
    snapshot("reservation_paused_and_resumed", &site.page);
}

#[test]
fn market_unreachable() {
    let mut site = Site::active("The market cannot be reached; paid work runs on.", |_| {});
    site.allocation_exists = Observed::Unknown("the market's API server does not answer".into());
    site.reconcile("The market does not answer.");
    site.later(3541);
    site.reconcile("The paid time is over.");
    snapshot("market_unreachable", &site.page);
}
