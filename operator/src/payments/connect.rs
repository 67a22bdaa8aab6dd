//! Connections to the RPC endpoints of PaymentNetworks. A URL that was replaced in its Secret is taken up without a restart.

use std::{
    sync::PoisonError,
    time::{Duration, Instant},
};

use kube::ResourceExt as _;
use leasehold_chain::{EvmEscrow, Network as Connection};
use leasehold_crds::{PaymentNetwork, payment::network::PaymentNetworkSpec};
use leasehold_planner::endpoints::{Endpoint, Endpoints};

use super::{ClientError, PaymentClients, currency, entry, limits};

/// A Secret with an RPC URL is read again after this time.
const SECRET_PERIOD: Duration = Duration::from_secs(30);

/// The clients of a PaymentNetwork, and what they were made of.
#[derive(Clone)]
pub(super) struct Connected {
    spec: PaymentNetworkSpec,
    urls: Urls,
    /// When the Secrets were last read, or this was last begun.
    read_at: Instant,
    first: EvmEscrow,
    second: Option<EvmEscrow>,
}

/// URLs of the first and of the second endpoint. They are secrets.
#[derive(Clone, PartialEq, Eq)]
struct Urls(String, Option<String>);

impl Connected {
    fn of(&self, endpoint: Endpoint) -> Option<&EvmEscrow> {
        match endpoint {
            Endpoint::First => Some(&self.first),
            Endpoint::Second => self.second.as_ref(),
        }
    }

    /// Whether the Secrets are to be read again.
    fn is_due(&self, now: Instant) -> bool {
        let uses_secrets = self.spec.rpc_secret_name.is_some() || self.spec.second_rpc_secret_name.is_some();
        uses_secrets && now.duration_since(self.read_at) >= SECRET_PERIOD
    }
}

impl PaymentClients {
    /// The escrow client of a network, at the endpoint that leads.
    ///
    /// # Errors
    /// When the PaymentNetwork is incomplete, or a Secret with an RPC URL can't be read for the first time.
    pub async fn client(&self, network: &PaymentNetwork) -> Result<EvmEscrow, ClientError> {
        let name = network.name_any();
        let connected = self.connected(&name, network).await?;
        let leading = self.endpoints(network, |endpoints, _| endpoints.leading());
        Ok(connected.of(leading).unwrap_or(&connected.first).clone())
    }

    /// The client of the network's other endpoint, if there is one.
    pub fn other(&self, network: &PaymentNetwork, chain: &EvmEscrow) -> Option<EvmEscrow> {
        let all = self.connected.lock().unwrap_or_else(PoisonError::into_inner);
        let connected = all.get(&network.name_any())?;
        let second = connected.second.as_ref()?;
        let other = if chain.is(second) {
            &connected.first
        } else {
            second
        };
        Some(other.clone())
    }

    /// Name under which the events of that client's endpoint are kept: each endpoint may tell others.
    pub fn index_name(&self, network: &PaymentNetwork, chain: &EvmEscrow) -> String {
        match self.endpoint(network, chain) {
            Endpoint::First => network.name_any(),
            Endpoint::Second => format!("{}/second", network.name_any()),
        }
    }

    /// Which endpoint that client has.
    pub(super) fn endpoint(&self, network: &PaymentNetwork, chain: &EvmEscrow) -> Endpoint {
        let all = self.connected.lock().unwrap_or_else(PoisonError::into_inner);
        let second = all.get(&network.name_any()).and_then(|c| c.second.as_ref());
        match second {
            Some(second) if chain.is(second) => Endpoint::Second,
            Some(_) | None => Endpoint::First,
        }
    }

    async fn connected(&self, name: &str, network: &PaymentNetwork) -> Result<Connected, ClientError> {
        let spec = &network.spec;
        let known = {
            let mut all = self.connected.lock().unwrap_or_else(PoisonError::into_inner);
            match all.get_mut(name).filter(|known| known.spec == *spec) {
                Some(known) => {
                    let now = Instant::now();
                    if !known.is_due(now) {
                        return Ok(known.clone());
                    }
                    // Others use the present clients until the Secrets are read.
                    known.read_at = now;
                    Some(known.clone())
                }
                None => None,
            }
        };
        let urls = match (self.urls(name, spec).await, known) {
            (Ok(urls), Some(known)) if urls == known.urls => return Ok(known),
            (Ok(urls), _) => urls,
            // What was read before is used until the Secrets can be read again.
            (Err(error), Some(known)) => {
                tracing::warn!(
                    network = name,
                    error = error.message(),
                    "the RPC URL can't be read again"
                );
                return Ok(known);
            }
            (Err(error), None) => return Err(error),
        };
        let connected = Connected {
            first: self.connect(name, spec, &urls.0)?,
            second: match &urls.1 {
                Some(url) => Some(self.connect(name, spec, url)?),
                None => None,
            },
            spec: spec.clone(),
            urls,
            read_at: Instant::now(),
        };
        // Another endpoint may be behind the one before it.
        let fresh = match connected.second {
            Some(_) => Endpoints::two(),
            None => Endpoints::default(),
        };
        let mut endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        endpoints.insert(name.to_owned(), fresh);
        drop(endpoints);
        let mut all = self.connected.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(name.to_owned(), connected.clone());
        Ok(connected)
    }

    fn connect(&self, name: &str, spec: &PaymentNetworkSpec, url: &str) -> Result<EvmEscrow, ClientError> {
        let currency = currency(spec).ok_or_else(|| ClientError::MalformedAddress(name.to_owned()))?;
        let connection = Connection {
            rpc_url: url.to_owned(),
            chain_id: currency.chain_id,
            escrow: currency.escrow,
            token: currency.token,
            call_deadline: self.call_deadline,
            mine_deadline: self.mine_deadline,
            limits: limits(&spec.limits).ok_or_else(|| ClientError::MalformedLimits(name.to_owned()))?,
        };
        EvmEscrow::connect(&connection, &self.queues).map_err(ClientError::Connect)
    }

    async fn urls(&self, name: &str, spec: &PaymentNetworkSpec) -> Result<Urls, ClientError> {
        let first = self.url(spec.rpc_url.as_ref(), spec.rpc_secret_name.as_ref());
        let first = first.await?.ok_or_else(|| ClientError::NoUrl(name.to_owned()))?;
        let second = self.url(spec.second_rpc_url.as_ref(), spec.second_rpc_secret_name.as_ref());
        Ok(Urls(first, second.await?))
    }

    async fn url(
        &self,
        url: Option<&String>,
        secret: Option<&String>,
    ) -> Result<Option<String>, ClientError> {
        let (None, Some(secret)) = (url, secret) else {
            return Ok(url.cloned());
        };
        let found = self.secrets.get(secret).await;
        let found = found.map_err(|source| ClientError::Secret {
            secret: secret.clone(),
            source: Box::new(source),
        })?;
        let url = entry(&found, "url").ok_or_else(|| ClientError::NoEntry(secret.clone()))?;
        Ok(Some(url))
    }
}

#[cfg(test)]
mod tests;
