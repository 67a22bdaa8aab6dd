//! Tests of the decisions about a lease, and the worlds that they share.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use leasehold_crds::{
    FINALIZER_MARKET, GpuAllocation, GpuLease,
    lease::{
        AccountSummary, CloseReason, GpuLeaseStatus, Intent, IntentAction, LeaseEscrow, LeaseLeg, Phase,
        conditions::{LeaseCondition, LeaseEvent, LeaseReason},
        workload::{Endpoint, JobResult, ResultsAt},
    },
    market::allocation::{AllocationPhase, GpuAllocationSpec, GpuAllocationStatus, StopReason},
    payment::money::{Rate, TokenAmount},
    shared::conditions::{ConditionStatus, condition, find, is_true, set},
};
use proptest::prelude::*;
use serde_json::json;

use super::{check::AccountState, *};
use crate::{
    escrow::{Account, AccountAt, AccountRead, Address, Hash, Leg, LegState, MarketSecret, RoundKey, Terms},
    observed::Observed,
    placement::Currency,
    ports::{Head, PaymentError, SigningKey},
    urls::GatewayAddress,
};

mod ending;
mod gateway;
mod matching;
mod properties;
mod recovering;
mod replacing;
mod reporting;
mod serving;
mod several;

const NOW: u64 = 1_800_000_000;
const MARKET: Address = Address([4; 20]);

fn now() -> Timestamp {
    Timestamp::from_second(i64::try_from(NOW).unwrap()).unwrap()
}

/// Lets the lease be one that its tenant deletes now.
fn delete(lease: &mut GpuLease) {
    lease.metadata.deletion_timestamp = Some(Time(now()));
}

fn network() -> Network {
    Network {
        currency: Currency {
            chain_id: 31_337,
            escrow: Address([8; 20]),
            token: Address([5; 20]),
        },
        market_id: MARKET,
        closer: Address([6; 20]),
        secret: MarketSecret::of(&SigningKey([7; 32])),
        symbol: "USDC".into(),
        decimals: 6,
        refusal: None,
    }
}

fn terms() -> Terms {
    Terms {
        payer: Address([3; 20]),
        market: MARKET,
        token: network().currency.token,
        closer: network().closer,
        salt: network()
            .secret
            .salt(RoundKey::new(MARKET, "uid", 1), Address([3; 20])),
        start_by: NOW + 900,
        notice_seconds: 0,
        pause_for: 0,
        legs: vec![Leg {
            payee: Address([1; 20]),
            controller: Address([2; 20]),
            rate: Rate(500_000_000_000_000),
        }],
    }
}

fn head() -> Head {
    Head {
        number: 1,
        hash: Hash::default(),
        time: NOW,
    }
}

/// An answer of the newest block.
fn known(read: AccountRead) -> Observed<AccountAt> {
    Observed::Known(AccountAt { block: head(), read })
}

/// Stores an intent to pay so much in total, and gives back the status.
fn intend<'a>(world: &'a mut World, action: IntentAction, total: &str) -> &'a mut GpuLeaseStatus {
    let status = Arc::make_mut(&mut world.lease).status.as_mut().unwrap();
    status.intent = Some(Intent {
        action,
        total: Some(total.into()),
        written_at: now().to_string(),
    });
    status
}

/// Started a minute ago, and paid for so many seconds from now.
fn account(left: u64) -> Account {
    Account {
        closed: false,
        deposited: TokenAmount(1_000_000),
        balance_scaled: u128::from(left) * 500_000_000_000_000,
        block_time: NOW,
        paid_until: NOW + left,
        exhausted_at: 0,
        started_at: NOW - 60,
        paid_seconds: 60,
        running: 1,
        ended: 0,
        legs: vec![LegState {
            served_seconds: 60,
            ..LegState::default()
        }],
    }
}

fn exhausted() -> Account {
    Account {
        exhausted_at: NOW - 1,
        paid_until: NOW - 1,
        running: 0,
        ..account(0)
    }
}

fn gateway() -> GatewayAddress {
    GatewayAddress {
        domain: "leases.example.org".into(),
        port: 443,
    }
}

/// A lease that serves, with its one allocation.
fn world(account: AccountRead, provider: AllocationPhase) -> World {
    let lease = json!({
        "apiVersion": "leasehold.dev/v1alpha1", "kind": "GpuLease",
        "metadata": {"name": "l", "namespace": "team", "uid": "uid", "generation": 1, "finalizers": [FINALIZER_MARKET]},
        "spec": {
            "perNode": {"cpu": "1", "memory": "1Gi", "ephemeralStorage": "1Gi", "gpus": 1},
            "term": {"duration": "1h"},
            "workload": {"service": {"image": "i", "ports": [{"name": "http", "port": 80}]}},
            "payment": {"network": "n", "maxPricePerGpuHour": "1.90", "wallet": {"secretName": "w"}},
        },
    });
    let mut lease: GpuLease = serde_json::from_value(lease).unwrap();
    let wire = terms().to_wire(network().currency.chain_id, network().currency.escrow);
    lease.status = Some(GpuLeaseStatus {
        phase: Phase::Active,
        round: 1,
        escrow: Some(LeaseEscrow {
            terms: wire.clone(),
            open_by: i64::try_from(NOW).unwrap() - 100,
            legs: vec![LeaseLeg::default()],
        }),
        ..GpuLeaseStatus::default()
    });
    let mut allocation = GpuAllocation::new(
        "a",
        GpuAllocationSpec {
            round: 1,
            escrow: wire,
            nodes: 1,
            not_after: i64::try_from(NOW).unwrap() + 7_200,
            ..GpuAllocationSpec::default()
        },
    );
    allocation.status = Some(GpuAllocationStatus {
        phase: provider,
        ..GpuAllocationStatus::default()
    });
    let read = Some(known(account));
    let network = Observed::Known(Some(network()));
    World {
        parsed: Parsed::of(&lease, &Deletion::None, &network, None, &[], &[]),
        lease: Arc::new(lease),
        deletion: Deletion::None,
        network,
        gateway: None,
        access_token: Observed::Known(AccessToken::NotRead),
        providers: Arc::from([]),
        candidates: Arc::from([]),
        allocations: vec![AllocationSeen {
            object: Arc::new(allocation),
            signed: true,
        }],
        wallet: Observed::Known(Wallet::NotRead),
        balances: None,
        head: Observed::Known(head()),
        account: read.clone(),
        second_account: read,
        final_reads: Vec::new(),
        prior: Observed::Known(None),
        unfunded_in_namespace: 0,
        unanswered: BTreeMap::new(),
    }
}

/// The world with its lease parsed anew, as the next reconcile reads it.
fn parsed(world: &World) -> World {
    let mut world = world.clone();
    if world.lease.metadata.deletion_timestamp.is_some() {
        world.deletion = Deletion::ByTenant;
    }
    world.parsed = Parsed::of(
        &world.lease,
        &world.deletion,
        &world.network,
        world.gateway.as_ref(),
        &world.providers,
        &world.candidates,
    );
    world
}

fn check(world: &World) -> Checked {
    super::check(&parsed(world))
}

fn decide(world: &World, checked: &Checked, now: Timestamp) -> Plan {
    super::decide(&parsed(world), checked, now)
}

fn needs_wallet(world: &World) -> bool {
    super::needs_wallet(&parsed(world))
}

fn end_of(account: Account, provider: AllocationPhase) -> Option<CloseReason> {
    check(&world(AccountRead::Present(account), provider)).end
}
