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
    escrow::{Address, Hash, Terms},
    orphans::{Claims, Suspects, Verdict, assess},
    ports::Payments as _,
};
use leasehold_runtime::Process;
use leasehold_telemetry::{
    Heartbeat,
    metrics::{ChainAction, Class, Controller},
};

use super::Market;

const PERIOD: Duration = Duration::from_secs(30);
/// Accounts of a network that are read each time.
const ACCOUNTS_MAX: usize = 500;
/// Accounts of a network that are closed each time.
const CLOSES_MAX: usize = 20;

/// Adds the loop that closes orphaned accounts.
pub(crate) fn register(process: &mut Process, market: &Arc<Market>) {
    let market = market.clone();
    process.add_loop("orphans", Duration::from_secs(300), |heartbeat| {
        run(market, heartbeat)
    });
}

/// Runs until the process ends.
async fn run(market: Arc<Market>, heartbeat: Heartbeat) {
    let mut suspects: HashMap<String, Suspects<Hash>> = HashMap::new();
    loop {
        let begun = Instant::now();
        let mut failed = None;
        for network in market.networks.state() {
            heartbeat.beat();
            let name = network.name_any();
            let suspects = suspects.entry(name.clone()).or_default();
            if let Err(error) = market.close_orphans(&network, suspects).await {
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
        market
            .metrics
            .orphans
            .set(suspects.values().map(Suspects::left).sum());
        market
            .metrics
            .reconcile
            .observe(Controller::Orphans, begun.elapsed(), failed);
        tokio::time::sleep(PERIOD).await;
    }
}

impl Market {
    async fn close_orphans(
        &self,
        network: &PaymentNetwork,
        suspects: &mut Suspects<Hash>,
    ) -> anyhow::Result<()> {
        let name = network.name_any();
        let Some(market) = network
            .spec
            .market_id
            .as_deref()
            .and_then(|m| m.parse::<Address>().ok())
        else {
            return Ok(());
        };
        let chain = self.payments.client(network).await?;
        let leases = self.leases.state();
        let claims = Claims::of(market, leases.iter().map(|l| &**l));
        let unclaimed = self
            .index
            .unclaimed(&name, &chain, market, &claims, ACCOUNTS_MAX)
            .await?;
        let reads = self
            .payments
            .observed(ChainAction::Read, chain.accounts(&unclaimed))
            .await?;
        let found = unclaimed
            .iter()
            .zip(&reads)
            .map(|(terms, read)| (terms.salt, assess(terms, read)))
            .collect();
        let agreed = suspects.agreed(found);
        if agreed.is_empty() {
            return Ok(());
        }
        // The cache may lag behind a lease that was just created: leases are read from the API server.
        let claims = Claims::of(market, &self.leases_now().await?);
        let nobodys = |verdict: Verdict| -> Vec<&Terms> {
            let agrees = |terms: &&Terms| agreed.get(&terms.salt) == Some(&verdict) && !claims.has(terms);
            unclaimed.iter().filter(agrees).collect()
        };
        let over = nobodys(Verdict::Over).into_iter().map(|t| t.salt);
        self.index.forget(&name, over).await;
        for terms in nobodys(Verdict::Clear).into_iter().take(CLOSES_MAX) {
            self.clear(&chain, terms).await?;
        }
        Ok(())
    }

    async fn clear(&self, chain: &EvmEscrow, terms: &Terms) -> anyhow::Result<()> {
        let payouts = u16::try_from((1u32 << terms.legs.len()) - 1).unwrap_or(u16::MAX);
        let receipt = self
            .payments
            .observed(ChainAction::Close, chain.close(&self.closer, terms, payouts))
            .await
            .with_context(|| format!("close account {}", terms.id()))?;
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
