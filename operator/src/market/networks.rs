//! Whether each PaymentNetwork can be used, told where its admin looks.

use std::{sync::Arc, time::Duration};

use kube::{Api, ResourceExt as _};
use leasehold_crds::{
    PaymentNetwork,
    conditions::{Truth, condition, set},
    network::PaymentNetworkStatus,
};
use leasehold_planner::ports::Payments as _;
use leasehold_telemetry::{Heartbeat, metrics::ChainAction};

use super::{MANAGER, Market};
use crate::{objects, payments::Rails};

const PERIOD: Duration = Duration::from_secs(15);

/// Asks each network for its newest block, every so often.
pub(super) async fn run(market: Arc<Market>, heartbeat: Heartbeat) {
    let api = Api::<PaymentNetwork>::all(market.client.clone());
    loop {
        heartbeat.beat();
        for network in market.networks.state() {
            let status = status(&market.rails, &network, market.now()).await;
            if network.status.as_ref() != Some(&status)
                && let Err(error) = objects::apply_status(&api, network.as_ref(), MANAGER, &status).await
            {
                tracing::debug!(network = network.name_any(), %error, "the network's status was not written");
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}

async fn status(rails: &Rails, network: &PaymentNetwork, now: jiff::Timestamp) -> PaymentNetworkStatus {
    let generation = network.metadata.generation.unwrap_or_default();
    let head = match rails.rail(network).await {
        Ok(rail) => rails
            .observed(ChainAction::Read, rail.head())
            .await
            .map_err(|e| e.to_string()),
        Err(error) => Err(error),
    };
    let next = match head {
        Ok(_) if network.spec.market_id.is_none() => condition(
            "Reachable",
            Truth::False,
            "NoMarketId",
            "set spec.marketId: leases are not served on this network without it",
            generation,
        ),
        Ok(_) => condition("Reachable", Truth::True, "Reachable", String::new(), generation),
        Err(why) => condition("Reachable", Truth::Unknown, "Unreachable", why, generation),
    };
    let mut status = network.status.clone().unwrap_or_default();
    status.observed_generation = generation;
    set(&mut status.conditions, next, now);
    status
}
