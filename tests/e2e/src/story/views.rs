//! What a tenant or a provider sees during a story: the output of kubectl, the quote, Events, pods and offers.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use jiff::Timestamp;
use k8s_openapi::api::{core::v1::Pod, events::v1::Event};
use kube::{Api, ResourceExt as _, api::ListParams};
use leasehold_crds::{GpuLease, GpuOffer, GpuReservation, LABEL_LEASE, lease::Quote};
use leasehold_planner::escrow::{Terms, allocation_name, lease_name};

use super::{Outcome, Stage, amount_text, short};
use crate::{
    console::{Align, Table},
    pods::containers_run_since,
    stack::{DECIMALS, Stack},
    within,
};

/// How often pods and offers are polled to measure times.
const LOOK: Duration = Duration::from_millis(50);

/// Runs kubectl as a tenant would, and prints the command and its output.
pub(super) fn kubectl(stage: &Stage<'_>, arguments: &[&str]) -> anyhow::Result<()> {
    let quoted = arguments.iter().map(|word| match word.contains(['{', ' ']) {
        true => format!("'{word}'"),
        false => (*word).to_owned(),
    });
    stage
        .console
        .command(&format!("kubectl {}", quoted.collect::<Vec<_>>().join(" ")));
    let output = stage
        .stack
        .cluster
        .kubectl()
        .args(arguments)
        .current_dir(leasehold_tasks::root())
        .output()
        .context("run kubectl")?;
    ensure!(
        output.status.success(),
        "kubectl {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    stage.console.output(&String::from_utf8_lossy(&output.stdout));
    Ok(())
}

/// Prints the quote of the status.
pub(super) fn quote(stage: &Stage<'_>, quote: &Quote) {
    let mut table = Table::new(&[
        ("provider", Align::Left),
        ("class", Align::Left),
        ("nodes free", Align::Right),
        ("GPU-hour", Align::Right),
    ]);
    for offer in &quote.offers {
        table.row([
            offer.provider.clone(),
            offer.class.clone(),
            offer.nodes_free.to_string(),
            format!("{} USDC", offer.price_per_gpu_hour),
        ]);
    }
    let rest = quote
        .counts
        .iter()
        .map(|count| format!("{} by {}", count.rows, count.dimension));
    let rest: Vec<String> = rest.collect();
    let rest = match rest.is_empty() {
        true => String::new(),
        false => format!("; the others do not match: {}", rest.join(", ")),
    };
    let fits = quote.offers.len();
    let caption = format!(
        "The quote: {fits} of {} offers {}{rest}",
        quote.considered,
        if fits == 1 { "fits" } else { "fit" }
    );
    stage.console.table(&caption, &table);
}

/// Prints the Events of a lease, in the order of their time.
pub(super) async fn events(stage: &Stage<'_>, lease: &GpuLease, applied: Timestamp) -> anyhow::Result<()> {
    let api = Api::<Event>::namespaced(stage.stack.client.clone(), &stage.tenant.namespace);
    let mut events: Vec<(Timestamp, Event)> = api
        .list(&ListParams::default())
        .await?
        .items
        .into_iter()
        .filter(|e| e.regarding.as_ref().and_then(|r| r.uid.clone()) == lease.uid())
        .filter_map(|e| Some((e.event_time.as_ref()?.0, e)))
        .collect();
    events.sort_by_key(|(at, _)| *at);
    let mut table = Table::new(&[
        ("after", Align::Right),
        ("type", Align::Left),
        ("reason", Align::Left),
        ("note", Align::Left),
    ]);
    for (at, event) in events {
        let after = at.duration_since(applied).as_secs_f64();
        table.row([
            format!("{:.1}s", after.max(0.0)),
            event.type_.unwrap_or_default(),
            event.reason.unwrap_or_default(),
            event.note.unwrap_or_default(),
        ]);
    }
    stage.console.table("Events of the lease", &table);
    Ok(())
}

/// Prints every transaction of a story with its sender.
pub(super) fn transactions(stage: &Stage<'_>, outcome: &Outcome) {
    let mut table = Table::new(&[
        ("block", Align::Right),
        ("transaction", Align::Left),
        ("call", Align::Left),
        ("gas", Align::Right),
        ("sent by", Align::Left),
    ]);
    for transaction in &outcome.transactions {
        table.row([
            transaction.block.to_string(),
            short(&transaction.hash.to_string()),
            format!(
                "{}{}",
                if transaction.call.is_empty() {
                    "not to the escrow"
                } else {
                    &transaction.call
                },
                if transaction.succeeded { "" } else { " (reverted)" }
            ),
            grouped(transaction.gas),
            stage.participants.name(transaction.from),
        ]);
    }
    let caption = format!(
        "Transactions: {} in all, by scanning every block",
        outcome.transactions.len()
    );
    stage.console.table(&caption, &table);
}

/// Prints what each provider served and its price.
pub(super) fn bill(stage: &Stage<'_>, outcome: &Outcome) {
    let mut table = Table::new(&[
        ("provider", Align::Left),
        ("served", Align::Right),
        ("rate", Align::Right),
        ("earned", Align::Right),
    ]);
    let legs = outcome
        .lease
        .status
        .as_ref()
        .and_then(|s| s.escrow.as_ref())
        .map(|e| &e.legs);
    for (leg, served) in outcome.served.iter().enumerate() {
        let provider = legs.and_then(|s| s.get(leg)).map_or("", |s| s.provider.as_str());
        table.row([
            provider.to_owned(),
            format!("{} s", served.seconds),
            format!("{} USDC/h", served.rate.tokens_per_hour_nearest(DECIMALS)),
            format!("{} USDC", amount_text(served.earned)),
        ]);
    }
    stage.console.table(
        "The bill: seconds between the blocks that started and ended each leg",
        &table,
    );
}

/// Formats a number as `1,234,567`.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The lease's pods at all providers.
pub(super) async fn pods(stack: &Stack, terms: &Terms) -> anyhow::Result<Vec<Pod>> {
    let name = lease_name(terms.id());
    let wanted = ListParams::default().labels(&format!("{LABEL_LEASE}={name}"));
    Ok(Api::<Pod>::all(stack.client.clone()).list(&wanted).await?.items)
}

/// Namespace of each pod and the time since which its containers run, in Unix seconds.
pub(super) async fn running_since(stack: &Stack, terms: &Terms) -> anyhow::Result<Vec<(String, u64)>> {
    let running = |pod: &Pod| {
        let at = containers_run_since(pod)?;
        Some((pod.namespace()?, u64::try_from(at).ok()?))
    };
    Ok(pods(stack, terms).await?.iter().filter_map(running).collect())
}

/// Namespace, nodes and UUIDs of the reservations of a lease, once they have `gpus` GPUs in total.
pub(super) async fn bound(
    stack: &Stack,
    terms: &Terms,
    gpus: usize,
) -> anyhow::Result<Vec<(String, Vec<String>, Vec<String>)>> {
    let name = lease_name(terms.id());
    let wanted = ListParams::default().labels(&format!("{LABEL_LEASE}={name}"));
    let api = Api::<GpuReservation>::all(stack.client.clone());
    within(
        Duration::from_secs(15),
        &format!("{gpus} GPUs bound in the reservations"),
        || async {
            let found: Vec<_> = api
                .list(&wanted)
                .await?
                .items
                .into_iter()
                .map(|r| {
                    let uuids = r.status.as_ref().map(|s| s.gpu_uuids.clone()).unwrap_or_default();
                    (r.name_any(), r.spec.nodes.clone(), uuids)
                })
                .collect();
            let count: usize = found.iter().map(|(_, _, uuids)| uuids.len()).sum();
            Ok(if count == gpus { Ok(found) } else { Err(count) })
        },
    )
    .await
}

/// When a provider's GPUs were offered again.
#[derive(Clone, Debug)]
pub struct Returned {
    /// The provider.
    pub provider: String,
    /// When its pods of the lease had ended.
    pub pod_ended: Instant,
    /// When its offer was the same as before the lease.
    pub offered: Instant,
}

impl Returned {
    /// Time from the end of the pods to the offer.
    #[must_use]
    pub fn after_pod(&self) -> Duration {
        self.offered.saturating_duration_since(self.pod_ended)
    }
}

/// Number of GPUs that each provider offers, by name.
pub(super) async fn offered(stack: &Stack) -> anyhow::Result<BTreeMap<String, i64>> {
    let offers = Api::<GpuOffer>::all(stack.client.clone())
        .list(&ListParams::default())
        .await?;
    let gpus = |o: &GpuOffer| o.spec.rows.iter().map(|r| r.nodes_free * r.gpus).sum();
    Ok(offers.items.iter().map(|o| (o.name_any(), gpus(o))).collect())
}

/// Waits until each of the lease's providers offers as many GPUs as before, and notes when.
pub(super) async fn watch_return(
    stack: &Stack,
    terms: &Terms,
    legs: Vec<(String, String)>,
    had: &BTreeMap<String, i64>,
) -> anyhow::Result<Vec<Returned>> {
    let mut ended: BTreeMap<String, Instant> = BTreeMap::new();
    let mut returned = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(90);
    while returned.len() < legs.len() {
        ensure!(
            Instant::now() < deadline,
            "after 90 s, {} of {} providers offer their GPUs again",
            returned.len(),
            legs.len()
        );
        let (pods, offers) = tokio::try_join!(pods(stack, terms), offered(stack))?;
        let now = Instant::now();
        for (namespace, provider) in &legs {
            let alive = pods.iter().any(|pod| {
                let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
                pod.namespace().as_deref() == Some(namespace)
                    && !matches!(phase, Some("Succeeded" | "Failed"))
            });
            if alive {
                continue;
            }
            let pod_ended = *ended.entry(provider.clone()).or_insert(now);
            let known = returned.iter().any(|r: &Returned| r.provider == *provider);
            if !known && offers.get(provider) == had.get(provider) {
                returned.push(Returned {
                    provider: provider.clone(),
                    pod_ended,
                    offered: now,
                });
            }
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(returned)
}

/// The namespaces of a lease's legs on their providers' clusters, and the providers' names.
pub(super) fn legs(terms: &Terms, lease: &GpuLease) -> Vec<(String, String)> {
    let escrow = lease.status.as_ref().and_then(|s| s.escrow.as_ref());
    let legs = escrow.map(|e| e.legs.as_slice()).unwrap_or_default();
    let name = |(index, leg): (usize, &leasehold_crds::lease::LeaseLeg)| {
        (allocation_name(terms.id(), index), leg.provider.clone())
    };
    legs.iter().enumerate().map(name).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn digits_come_in_threes() {
        assert_eq!(super::grouped(1_234_567), "1,234,567");
        assert_eq!(super::grouped(999), "999");
    }
}
