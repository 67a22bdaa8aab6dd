//! Whether each PaymentNetwork can be used, told where its admin looks.

use std::time::Duration;

use kube::{Api, Client, ResourceExt as _, runtime::reflector::Store};
use leasehold_crds::{
    PaymentNetwork,
    payment::network::PaymentNetworkStatus,
    shared::conditions::{Truth, condition, set},
};
use leasehold_planner::ports::{Clock as _, Payments as _, SystemClock};
use leasehold_telemetry::{Heartbeat, metrics::ChainAction};

use crate::{api_writes, payments::Rails};

const PERIOD: Duration = Duration::from_secs(15);

/// Who looks: the market of a cluster, or its provider where there is no market.
pub(crate) struct Look {
    pub(crate) client: Client,
    pub(crate) networks: Store<PaymentNetwork>,
    pub(crate) rails: Rails,
    /// Field manager of the status.
    pub(crate) manager: &'static str,
    /// Whether leases are to be served on it here, which takes a `marketId`.
    pub(crate) market: bool,
}

/// Asks each network for its newest block, every so often.
pub(crate) async fn run(look: Look, heartbeat: Heartbeat) {
    let api = Api::<PaymentNetwork>::all(look.client.clone());
    loop {
        heartbeat.beat();
        for network in look.networks.state() {
            let status = status(&look, &network, SystemClock.now()).await;
            if network.status.as_ref() != Some(&status)
                && let Err(error) =
                    api_writes::apply_status(&api, network.as_ref(), look.manager, &status).await
            {
                error.log("PaymentNetwork", &network.name_any());
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}

async fn status(look: &Look, network: &PaymentNetwork, now: jiff::Timestamp) -> PaymentNetworkStatus {
    let generation = network.metadata.generation.unwrap_or_default();
    let head = match look.rails.rail(network).await {
        Ok(rail) => look
            .rails
            .observed(ChainAction::Read, rail.head())
            .await
            .map_err(|e| e.to_string()),
        Err(error) => Err(error),
    };
    let next = match head {
        Ok(_) if look.market && network.spec.market_id.is_none() => condition(
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
