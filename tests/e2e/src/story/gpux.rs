//! Story 04, GPUX's example: one lease over three providers, extended by three hours, refunded at its deletion.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, ensure};
use jiff::Timestamp;
use leasehold_crds::{
    GpuLease,
    lease::{CloseReason, GpuLeaseStatus, Phase},
    shared::conditions,
};
use leasehold_planner::{
    escrow::{Terms, allocation_name},
    ports::{Clock as _, Payments as _},
};
use leasehold_runtime::SystemClock;

use super::{Outcome, Returned, Stage, account_of, follow::Follow, money, short, views};
use crate::{
    console::{Align, Table},
    eventually,
    stack::{Role, address},
};

/// The example that the story applies.
pub const GPUX: &str = "examples/04-gpux.yaml";
const NAME: &str = "gpux";
const TIMEOUT: Duration = Duration::from_secs(60);
/// Nodes of the lease, each at a different provider, and GPUs per node.
const NODES: usize = 3;
const GPUS_OF_A_NODE: usize = 4;
/// The extension, and the total term after it.
const EXTENSION: &str = r#"{"spec":{"term":{"duration":"5h"}}}"#;
const EXTENDED_SECONDS: u64 = 5 * 3600;
/// Seconds of service before the tenant deletes the lease.
const SERVED_SECONDS: u64 = 8;

/// Result of the story.
#[derive(Clone, Debug)]
pub struct Gpux {
    /// The lease and its money.
    pub outcome: Outcome,
    /// Time from `kubectl apply` until all three nodes served.
    pub to_ready: Duration,
    /// Time from `kubectl delete` until the lease was gone and refunded.
    pub to_refund: Duration,
    /// GPUs of the reservations, as reported by the kubelet's pod-resources API.
    pub gpus: Vec<String>,
    /// Number of the tenant's transactions, and their gas.
    pub tenant_transactions: usize,
    /// See `tenant_transactions`.
    pub tenant_gas: u64,
    /// The deposit after the extension, and the price of five hours of all legs.
    pub deposited: leasehold_crds::payment::money::TokenAmount,
    /// See `deposited`.
    pub five_hours: leasehold_crds::payment::money::TokenAmount,
}

fn all_serve(status: &GpuLeaseStatus) -> bool {
    status.phase == Phase::Active
        && conditions::find(&status.conditions, "Ready").is_some_and(|c| c.status == "True")
}

/// Runs the story: a lease over three providers that is extended and deleted.
pub async fn gpux(stage: &Stage<'_>) -> anyhow::Result<Gpux> {
    let (stack, namespace) = (stage.stack, stage.tenant.namespace.as_str());
    let before = stage.balances().await?;
    let block = stage.ledger.head().await?;
    let had = views::offered(stack).await?;
    let mut follow = Follow::new(stage.console, &stage.tenant, NAME);
    views::kubectl(stage, &["apply", "-n", namespace, "-f", GPUX])?;
    follow.begin();
    let applied: Timestamp = SystemClock.now();

    let ready = follow.until(TIMEOUT, "all three nodes serve", all_serve).await?;
    let to_ready = follow.elapsed();
    follow.event("Ready", "three nodes of three providers serve");
    let (terms, _) = account_of(&stage.tenant, &ready).await?;
    let quote = ready.status.as_ref().and_then(|s| s.quote.clone());
    views::quote(stage, &quote.context("the status has a quote")?);
    views::kubectl(stage, &["get", "gpulease", NAME, "-n", namespace])?;
    let gpus = bound_gpus(stage, &terms).await?;
    let pods_run = views::running_since(stack, &terms).await?;

    let extended = extend(stage, &mut follow, &ready).await?;
    let (_, account) = account_of(&stage.tenant, &extended).await?;
    let deposited = account.deposited;
    let long_enough = account.started_at + SERVED_SECONDS;
    eventually("some seconds of service", || async {
        let now = stack.payments.head().await?.time;
        Ok(if now >= long_enough { Ok(()) } else { Err(now) })
    })
    .await?;

    let (gone, to_refund, returned) = delete(stage, &mut follow, &terms, &ready, &had).await?;
    let (terms, account) = account_of(&stage.tenant, &gone).await?;
    let transactions = stage.ledger.since(block).await?;
    let outcome = Outcome {
        served: money::served(&terms, &transactions)?,
        after: stage.balances().await?,
        phases: follow.phases.clone(),
        lease: gone,
        terms,
        account,
        transactions,
        before,
        returned,
    };
    not_before_run(&outcome, &pods_run)?;
    views::events(stage, &outcome.lease, applied).await?;
    views::transactions(stage, &outcome);
    views::bill(stage, &outcome);
    let (tenant_transactions, tenant_gas) = outcome.sent_by(address(Role::Tenant)?);
    stage.console.line("");
    stage.console.line(&format!(
        "The tenant sent {tenant_transactions} transactions of {} gas, of {} in all, payouts included.",
        views::grouped(tenant_gas),
        outcome.transactions.len()
    ));
    let five_hours = outcome.terms.rate().cost_ceil(EXTENDED_SECONDS);
    Ok(Gpux {
        to_ready,
        to_refund,
        gpus,
        tenant_transactions,
        tenant_gas,
        deposited,
        five_hours: five_hours.context("the price of five hours is in range")?,
        outcome,
    })
}

/// Extends the lease, and waits until the extension is paid.
async fn extend(stage: &Stage<'_>, follow: &mut Follow<'_>, ready: &GpuLease) -> anyhow::Result<GpuLease> {
    let namespace = stage.tenant.namespace.as_str();
    let patch = [
        "patch", "gpulease", NAME, "-n", namespace, "--type", "merge", "-p", EXTENSION,
    ];
    views::kubectl(stage, &patch)?;
    let was = ready.status.as_ref().and_then(|s| s.money.clone());
    let extended = follow
        .until(TIMEOUT, "the extension is paid", |s| {
            s.intent.is_none() && s.money.as_ref().map(|m| &m.deposited) != was.as_ref().map(|m| &m.deposited)
        })
        .await?;
    let money = extended
        .status
        .as_ref()
        .and_then(|s| s.money.clone())
        .unwrap_or_default();
    follow.event(
        "Extended",
        &format!(
            "{} USDC deposited in all, paid until {}",
            money.deposited,
            money.paid_until.as_deref().unwrap_or("?")
        ),
    );
    Ok(extended)
}

/// Deletes the lease. Returns its last state, the time until it was gone, and when the GPUs were offered again.
async fn delete(
    stage: &Stage<'_>,
    follow: &mut Follow<'_>,
    terms: &Terms,
    ready: &GpuLease,
    had: &BTreeMap<String, i64>,
) -> anyhow::Result<(GpuLease, Duration, Vec<Returned>)> {
    let (stack, namespace) = (stage.stack, stage.tenant.namespace.as_str());
    views::kubectl(
        stage,
        &["delete", "gpulease", NAME, "-n", namespace, "--wait=false"],
    )?;
    let deleted = follow.elapsed();
    let legs = views::legs(terms, ready);
    let returned = views::watch_return(stack, terms, legs, had);
    let returned = follow.meanwhile(returned).await?;
    let gone = follow.until_gone(TIMEOUT).await?;
    let to_refund = follow.elapsed() - deleted;
    follow.event(
        "Gone",
        &format!("{:.1} s after the deletion", to_refund.as_secs_f64()),
    );
    Ok((gone, to_refund, returned))
}

/// The GPUs that each provider's kubelet reports for its pod.
async fn bound_gpus(stage: &Stage<'_>, terms: &Terms) -> anyhow::Result<Vec<String>> {
    let bound = views::bound(stage.stack, terms, NODES * GPUS_OF_A_NODE).await?;
    let mut table = Table::new(&[
        ("node", Align::Left),
        ("GPUs held by the lease's pod", Align::Left),
    ]);
    for (_, nodes, uuids) in &bound {
        let uuids: Vec<String> = uuids.iter().map(|uuid| short_uuid(uuid)).collect();
        table.row([nodes.join(","), uuids.join("  ")]);
    }
    stage.console.table(
        "GPUs of the lease, as reported by each node's agent and copied into the provider's GpuReservation",
        &table,
    );
    Ok(bound.into_iter().flat_map(|(_, _, uuids)| uuids).collect())
}

fn short_uuid(uuid: &str) -> String {
    uuid.strip_prefix("GPU-").map_or_else(
        || short(uuid),
        |rest| format!("GPU-{}…", &rest[..8.min(rest.len())]),
    )
}

/// No leg was started in a block before the container of its pod ran.
fn not_before_run(outcome: &Outcome, run: &[(String, u64)]) -> anyhow::Result<()> {
    for (leg, state) in outcome.terms.legs.iter().enumerate() {
        let namespace = allocation_name(outcome.terms.id(), leg);
        let (_, run) = run
            .iter()
            .find(|(of, _)| *of == namespace)
            .with_context(|| format!("no pod of {namespace} ran"))?;
        let started = outcome
            .transactions
            .iter()
            .find(|t| t.call == "start" && t.from == state.controller && t.succeeded)
            .with_context(|| format!("leg {leg} was never started"))?;
        ensure!(
            started.time >= *run,
            "leg {leg} was charged from {} on, but its pod ran from {run} on",
            started.time
        );
    }
    Ok(())
}

impl Gpux {
    /// Checks what the story promises besides its money.
    pub fn check(&self) -> anyhow::Result<()> {
        let outcome = &self.outcome;
        ensure!(outcome.terms.legs.len() == NODES, "the account has three legs");
        let reason = outcome.lease.status.as_ref().and_then(|s| s.close_reason);
        ensure!(
            reason == Some(CloseReason::Deleted),
            "it closed with reason {reason:?} instead of Deleted"
        );
        ensure!(
            self.deposited == self.five_hours,
            "after the extension {} base units are deposited, but five hours cost {}",
            self.deposited,
            self.five_hours
        );
        let mut distinct = self.gpus.clone();
        distinct.sort();
        distinct.dedup();
        ensure!(
            distinct.len() == NODES * GPUS_OF_A_NODE,
            "{} different GPUs are bound, but 12 are leased",
            distinct.len()
        );
        let reverted = outcome.transactions.iter().filter(|t| !t.succeeded).count();
        ensure!(reverted == 0, "{reverted} transactions reverted");
        ensure!(
            self.tenant_transactions <= 3,
            "the tenant sent {} transactions; the limit is 3",
            self.tenant_transactions
        );
        ensure!(
            outcome.transactions.len() <= 6,
            "{} transactions were sent in total; the limit is 6",
            outcome.transactions.len()
        );
        ensure!(
            self.tenant_gas <= 300_000,
            "the tenant's transactions used {} gas; the limit is 300,000",
            self.tenant_gas
        );
        Ok(())
    }
}
