//! Every 30 seconds: finds accounts of this market that have no lease. Those that are paid for are counted and left
//! alone; those that anybody may close are closed, with the refund to their payer.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use kube::{Api, ResourceExt as _, api::ListParams};
use leasehold_chain::EvmEscrow;
use leasehold_crds::{GpuLease, PaymentNetwork};
use leasehold_planner::{
    escrow::{Address, Terms},
    market::accounts::Accounts,
    orphans::{Claims, Sweep, over_for_good},
    ports::{FINAL_READS, PaymentError, Payments as _},
};
use leasehold_runtime::Process;
use leasehold_telemetry::{
    Heartbeat,
    metrics::{ChainAction, Class, Controller},
};

use super::Market;
use crate::payments::{currency, level};

const PERIOD: Duration = Duration::from_secs(30);

/// Adds the loop that closes orphaned accounts.
pub(crate) fn register(process: &mut Process, market: &Arc<Market>) {
    let market = market.clone();
    process.add_loop("orphans", Duration::from_secs(300), |heartbeat| {
        run(market, heartbeat)
    });
}

/// Runs until the process ends.
async fn run(market: Arc<Market>, heartbeat: Heartbeat) {
    let mut sweeps: HashMap<String, Sweep> = HashMap::new();
    loop {
        let begun = Instant::now();
        let mut failed = None;
        for network in market.networks.state() {
            heartbeat.beat();
            let name = network.name_any();
            let sweep = sweeps.entry(name.clone()).or_default();
            if let Err(error) = market.close_orphans(&network, sweep).await {
                tracing::debug!(
                    network = name,
                    error = format!("{error:#}"),
                    "the search for orphans did not finish"
                );
                failed = Some(Class::Transient);
            }
        }
        heartbeat.beat();
        if let Some(leases) = &market.metrics.leases {
            let phase = |l: &Arc<GpuLease>| l.status.as_ref().map(|s| s.phase).unwrap_or_default();
            leases.count(market.leases.state().iter().map(phase));
        }
        market.metrics.orphans.set(sweeps.values().map(Sweep::left).sum());
        market
            .metrics
            .reconcile
            .observe(Controller::Orphans, begun.elapsed(), failed);
        tokio::time::sleep(PERIOD).await;
    }
}

impl Market {
    async fn close_orphans(&self, network: &PaymentNetwork, sweep: &mut Sweep) -> anyhow::Result<()> {
        let spec = &network.spec;
        let market = spec.market_id.as_deref().and_then(|m| m.parse::<Address>().ok());
        let (Some(market), Some(currency), Ok(decimals)) =
            (market, currency(spec), u32::try_from(spec.token.decimals))
        else {
            return Ok(());
        };
        let chain = self.payments.client(network).await?;
        let leases = self.leases.state();
        let claims = Claims::of(market, leases.iter().map(|l| &**l));
        let own = (currency.token, self.closer_address);
        let unclaimed = |accounts: &mut Accounts| sweep.next(accounts.unclaimed(&claims), own);
        let index = self.payments.index_name(network, &chain);
        let next = self.index.read(&index, &chain, market, unclaimed).await?;
        let reads = self.payments.accounts(network, &chain, &next).await?;
        let read: HashMap<_, _> = next.iter().map(Terms::id).zip(reads).collect();
        let accounts = next.into_iter().filter_map(|terms| {
            let at = read.get(&terms.id())?;
            Some((terms, at.read.clone()))
        });
        let agreed = sweep.agreed(accounts, decimals, self.now());
        if agreed.is_empty() {
            return Ok(());
        }
        let plan = sweep.plan(agreed, &Claims::of(market, &self.leases_now().await?));
        // Refunds come first: an endpoint that cannot tell what is final must not delay them.
        for (terms, payouts) in &plan.close {
            let Some(at) = read.get(&terms.id()) else {
                continue;
            };
            if !self.payments.is_confirmed(network, &chain, (terms, at)).await {
                continue;
            }
            if let Err(error) = self.close_orphan(&chain, terms, *payouts).await {
                tracing::warn!(account = %terms.id(), %error, "an account that has no lease could not be closed");
                sweep.failed(terms.id(), self.now());
            }
        }
        if plan.forget.is_empty() {
            return Ok(());
        }
        let mut reads = Vec::with_capacity(FINAL_READS);
        let other = self.payments.other(network, &chain);
        for n in 0..FINAL_READS {
            // From both endpoints in turn.
            let chain = other.as_ref().filter(|_| n % 2 == 1).unwrap_or(&chain);
            let read = chain.accounts(&plan.forget, level(network.spec.release_at));
            reads.push(self.payments.observed(ChainAction::Read, read).await?);
        }
        let over = over_for_good(&plan.forget, &reads);
        self.index.change(&index, |accounts| accounts.forget(&over)).await;
        Ok(())
    }

    async fn close_orphan(&self, chain: &EvmEscrow, terms: &Terms, payouts: u16) -> Result<(), PaymentError> {
        let receipt = self
            .payments
            .observed(ChainAction::Close, chain.close(&self.closer, terms, payouts))
            .await?;
        tracing::info!(account = %terms.id(), payer = %terms.payer, transaction = %receipt.transaction, "closed an account that has no lease");
        Ok(())
    }

    async fn leases_now(&self) -> anyhow::Result<Vec<GpuLease>> {
        let api = Api::<GpuLease>::all(self.client.clone());
        let mut params = ListParams::default().limit(500);
        let mut all = Vec::new();
        loop {
            let page = api.list(&params).await.context("list the leases")?;
            all.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(all),
            }
        }
    }
}
