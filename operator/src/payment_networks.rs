//! Reports in the status of each PaymentNetwork whether its chain can be reached.

use std::time::Duration;

use kube::{Api, Client, ResourceExt as _, runtime::reflector::Store};
use leasehold_crds::{
    PaymentNetwork,
    payment::network::{NetworkCondition, NetworkReason, PaymentNetworkStatus},
    shared::conditions::{ConditionStatus, condition, set},
};
use leasehold_planner::ports::{Clock as _, Payments as _};
use leasehold_runtime::{Process, SystemClock, api_writes};
use leasehold_telemetry::{Heartbeat, metrics::ChainAction};

use crate::payments::PaymentClients;

const PERIOD: Duration = Duration::from_secs(15);

/// What the loop needs. It runs in the market of a cluster, or in its provider where the market is elsewhere.
pub(crate) struct Reachability {
    pub(crate) client: Client,
    pub(crate) networks: Store<PaymentNetwork>,
    pub(crate) payments: PaymentClients,
    /// Field manager of the status.
    pub(crate) manager: &'static str,
    /// Whether leases are to be served on it here, which takes a `marketId`.
    pub(crate) market: bool,
}

/// Adds the loop that reports whether each PaymentNetwork can be reached.
pub(crate) fn register(process: &mut Process, of: Reachability) {
    process.add_loop("networks", Duration::from_secs(120), |heartbeat| {
        run(of, heartbeat)
    });
}

/// Reads the newest block of each network periodically.
async fn run(of: Reachability, heartbeat: Heartbeat) {
    let api = Api::<PaymentNetwork>::all(of.client.clone());
    loop {
        heartbeat.beat();
        for network in of.networks.state() {
            let status = status(&of, &network, SystemClock.now()).await;
            if network.status.as_ref() != Some(&status)
                && let Err(error) =
                    api_writes::apply_status(&api, network.as_ref(), of.manager, &status).await
            {
                error.log("PaymentNetwork", &network.name_any());
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}

async fn status(of: &Reachability, network: &PaymentNetwork, now: jiff::Timestamp) -> PaymentNetworkStatus {
    let generation = network.metadata.generation.unwrap_or_default();
    let head = match of.payments.client(network).await {
        Ok(chain) => of
            .payments
            .observed(ChainAction::Read, chain.head())
            .await
            .map_err(|e| e.to_string()),
        Err(error) => Err(error.message()),
    };
    let next = match head {
        Ok(_) if of.market && network.spec.market_id.is_none() => condition(
            NetworkCondition::Reachable,
            ConditionStatus::False,
            NetworkReason::NoMarketId,
            "set spec.marketId: leases are not served on this network without it",
            generation,
        ),
        Ok(_) => condition(
            NetworkCondition::Reachable,
            ConditionStatus::True,
            NetworkReason::Reachable,
            String::new(),
            generation,
        ),
        Err(why) => condition(
            NetworkCondition::Reachable,
            ConditionStatus::Unknown,
            NetworkReason::Unreachable,
            why,
            generation,
        ),
    };
    let mut status = network.status.clone().unwrap_or_default();
    status.observed_generation = generation;
    set(&mut status.conditions, next, now);
    status
}
