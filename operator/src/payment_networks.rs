//! Compares each PaymentNetwork periodically with its chain, and reports in its status whether both agree.

use std::{sync::Arc, time::Duration};

use kube::{Api, Client, ResourceExt as _, runtime::reflector::Store};
use leasehold_chain::EvmEscrow;
use leasehold_crds::PaymentNetwork;
use leasehold_planner::{
    payment_network::{ChainReading, Serves, is_unread, status},
    ports::{BlockLevel, Clock as _, PaymentError, Payments as _},
};
use leasehold_runtime::{Process, SystemClock, api_writes};
use leasehold_telemetry::{Heartbeat, metrics::ChainAction};
use tokio::sync::Notify;

use crate::payments::{PaymentClients, level};

const PERIOD: Duration = Duration::from_secs(15);
/// Contracts that agreed with the spec are read again this many periods later: a token behind a proxy can change.
const PERIODS_BETWEEN_FACTS: u64 = 20;

/// What the loop needs. It runs in the market of a cluster, or in its provider where the market is elsewhere.
pub(crate) struct NetworkChecks {
    pub(crate) client: Client,
    pub(crate) networks: Store<PaymentNetwork>,
    /// Notified when a PaymentNetwork has changed.
    pub(crate) changed: Arc<Notify>,
    pub(crate) payments: PaymentClients,
    /// Field manager of the status.
    pub(crate) manager: &'static str,
    pub(crate) serves: Serves,
}

/// Adds the loop that compares each PaymentNetwork with its chain.
pub(crate) fn register(process: &mut Process, of: NetworkChecks) {
    process.add_loop("networks", Duration::from_secs(120), |heartbeat| {
        run(of, heartbeat)
    });
}

async fn run(of: NetworkChecks, heartbeat: Heartbeat) {
    let api = Api::<PaymentNetwork>::all(of.client.clone());
    let mut period = 0;
    loop {
        heartbeat.beat();
        for network in of.networks.state() {
            let facts = is_unread(&network) || period % PERIODS_BETWEEN_FACTS == 0;
            let reading = of.read(&network, facts).await;
            let finality = match reading {
                ChainReading::Facts(_) => of.finality(&network).await,
                ChainReading::Answers | ChainReading::OtherChain(_) | ChainReading::Unknown(_) => None,
            };
            let (agreement, now) = (of.payments.agreement(&network), SystemClock.now());
            let status = status(&network, &reading, finality, &agreement, of.serves, now);
            if network.status.as_ref() != Some(&status)
                && let Err(error) =
                    api_writes::apply_status(&api, network.as_ref(), of.manager, &status).await
            {
                error.log("PaymentNetwork", &network.name_any());
            }
        }
        period += 1;
        let _ = tokio::time::timeout(PERIOD, of.changed.notified()).await;
    }
}

impl NetworkChecks {
    /// Reads the contracts of a network, or only the newest block, from both endpoints if it has two.
    async fn read(&self, network: &PaymentNetwork, facts: bool) -> ChainReading {
        let chain = match self.payments.client(network).await {
            Ok(chain) => chain,
            Err(error) => return ChainReading::Unknown(error.message()),
        };
        let reading = self.read_at(network, &chain, facts).await;
        if let Some(other) = self.payments.other(network, &chain)
            && let (ChainReading::Facts(one), ChainReading::Facts(another)) =
                (&reading, self.read_at(network, &other, facts).await)
            && *one != another
        {
            let what = "the RPC endpoints disagree about the escrow contract or the token";
            self.payments.disagreed(network, what);
            return ChainReading::Unknown(what.into());
        }
        reading
    }

    /// By how many seconds the newest block with the finality `provisionAt` is behind the newest one.
    async fn finality(&self, network: &PaymentNetwork) -> Option<u64> {
        let chain = self.payments.client(network).await.ok()?;
        let newest = async |level| {
            let read = self.payments.observed(ChainAction::Read, chain.newest(level));
            read.await.ok()
        };
        let last = newest(level(network.spec.provision_at)).await?;
        let head = newest(BlockLevel::Latest).await?;
        Some(head.time.saturating_sub(last.time))
    }

    async fn read_at(&self, network: &PaymentNetwork, chain: &EvmEscrow, facts: bool) -> ChainReading {
        let head = match self.payments.observed(ChainAction::Read, chain.head()).await {
            Ok(head) => head,
            Err(error) => {
                let reading = match &error {
                    PaymentError::WrongChain { found, .. } => ChainReading::OtherChain(*found),
                    _ => ChainReading::Unknown(error.to_string()),
                };
                self.payments.judge_head(network, chain, Err(error));
                return reading;
            }
        };
        let recent = self.payments.accept(network, chain, head);
        let facts = if facts && recent.is_ok() {
            match self.payments.observed(ChainAction::Read, chain.facts()).await {
                Ok(facts) => Some(facts),
                Err(error) => return ChainReading::Unknown(error.to_string()),
            }
        } else {
            None
        };
        ChainReading::of(recent, facts)
    }
}
