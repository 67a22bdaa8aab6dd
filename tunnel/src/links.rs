//! Keeps a connection to every replica of the gateway.
//!
//! Replicas are found by names that resolve to one address for each of them, or behind one address that leads to any of
//! them: then the address is dialled until each replica was met, as the gateway tells its name and how many there are.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use rand::RngExt as _;
use tokio::{
    net,
    task::JoinSet,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use crate::{
    dial::{self, Credentials, DialError, Dialed},
    serve::{self, Serve},
};

/// How often names are resolved and missing connections are dialled.
const TICK: Duration = Duration::from_millis(250);
/// How often names are resolved.
const RESOLVE_EVERY: Duration = Duration::from_secs(2);
/// How long a resolver may take.
const RESOLVE_WITHIN: Duration = Duration::from_secs(2);
/// Pause after the first failure at an address. It doubles with each further one.
const RETRY_FIRST: Duration = Duration::from_millis(250);
/// Longest pause after failures.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// Pause after an address led to a replica that has a connection already.
const RETRY_DUPLICATE: Duration = Duration::from_secs(1);
/// Pause after an address led to this process.
const RETRY_ITSELF: Duration = Duration::from_secs(60);
/// A connection is replaced after so long, plus up to a quarter, so that the token is checked again.
const REPLACE_AFTER: Duration = Duration::from_secs(30 * 60);
/// How long an old connection takes new streams while its replacement is dialled.
const OVERLAP: Duration = Duration::from_secs(5);
/// Connections at once, whatever the gateway tells about its replicas.
const CONNECTIONS_MAX: usize = 32;

/// What happens to connections, for metrics and logs.
pub trait Observe: Send + Sync + 'static {
    /// The number of replicas that have a connection, and of those that should have one.
    fn connected(&self, connected: usize, wanted: usize);
    /// A connection could not be opened.
    fn failed(&self, address: SocketAddr, error: &DialError);
}

/// Keeps connections to every replica.
pub struct Links<S, O> {
    /// `HOST:PORT` of replicas, names or addresses.
    pub addresses: Vec<String>,
    /// How to connect.
    pub credentials: Credentials,
    /// What serves the streams.
    pub server: Arc<S>,
    /// What is told of connections.
    pub observe: Arc<O>,
    /// A replica that is never connected to: this process itself, if it is one.
    pub except: Option<String>,
}

/// What is known of an address.
#[derive(Clone, Copy, Default)]
struct Address {
    is_dialled: bool,
    /// Connections that it led to and that are not being replaced.
    connections: usize,
    failures: u32,
    not_before: Option<Instant>,
}

/// A connection that serves.
struct Connection {
    address: SocketAddr,
    /// Tells it from the connection before and after it.
    number: u64,
    replace_at: Instant,
    drain: CancellationToken,
}

/// What a task has done.
enum Done {
    Dialled(SocketAddr, Result<Dialed, DialError>),
    Served { replica: String, number: u64 },
}

/// What is known of replicas and of connections to them.
#[derive(Default)]
struct State {
    addresses: BTreeMap<SocketAddr, Address>,
    resolved_at: Option<Instant>,
    by_replica: BTreeMap<String, Connection>,
    /// How many replicas there are, as the last one told.
    announced: usize,
    /// Connections that are replaced, and when they stop taking new streams.
    replaced: Vec<(Instant, CancellationToken)>,
    numbers: u64,
    tasks: JoinSet<Done>,
}

impl<S: Serve, O: Observe> Links<S, O> {
    /// Runs until `shutdown`, then drains every connection, for `grace` at most.
    pub async fn run(self, shutdown: CancellationToken, grace: Duration) {
        let mut state = State::default();
        let mut tick = time::interval(TICK);
        tick.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                _ = tick.tick() => {}
                Some(Ok(done)) = state.tasks.join_next() => self.note(&mut state, done, &shutdown),
            }
            if state.resolved_at.is_none_or(|at| at.elapsed() >= RESOLVE_EVERY) {
                self.resolve(&mut state).await;
            }
            state.replace_old();
            let wanted = self.wanted(&state);
            self.observe.connected(state.by_replica.len(), wanted);
            for address in state.due(wanted) {
                let credentials = self.credentials.clone();
                state
                    .tasks
                    .spawn(async move { Done::Dialled(address, dial::dial(address, &credentials).await) });
            }
        }
        // Connections are drained by the same token. What only dials is not waited for.
        let served = async {
            let mut left = state.by_replica.len();
            while left > 0 {
                match state.tasks.join_next().await {
                    Some(Ok(Done::Served { .. })) => left -= 1,
                    Some(_) => {}
                    None => return,
                }
            }
        };
        drop(time::timeout(grace, served).await);
    }

    /// How many replicas should have a connection.
    fn wanted(&self, state: &State) -> usize {
        // This process is one of the replicas that are announced, and one of the addresses.
        let others = state.announced.max(state.addresses.len()) - usize::from(self.except.is_some());
        others.min(CONNECTIONS_MAX)
    }

    async fn resolve(&self, state: &mut State) {
        state.resolved_at = Some(Instant::now());
        let mut found = Vec::new();
        for name in &self.addresses {
            match time::timeout(RESOLVE_WITHIN, net::lookup_host(name)).await {
                Ok(Ok(addresses)) => found.extend(addresses.take(CONNECTIONS_MAX)),
                Ok(Err(error)) => tracing::debug!(%name, %error, "the gateway's name does not resolve"),
                Err(_) => tracing::debug!(%name, "no answer about the gateway's name"),
            }
        }
        // A resolver that fails tells nothing about the addresses.
        if !found.is_empty() {
            state
                .addresses
                .retain(|address, known| found.contains(address) || known.is_dialled);
            for address in found {
                state.addresses.entry(address).or_default();
            }
        }
    }

    /// Takes in what a task has done.
    fn note(&self, state: &mut State, done: Done, shutdown: &CancellationToken) {
        match done {
            Done::Served { replica, number } => {
                if let Some(connection) = state.by_replica.get(&replica)
                    && connection.number == number
                {
                    let address = connection.address;
                    state.by_replica.remove(&replica);
                    state.disconnected(address);
                }
            }
            Done::Dialled(address, result) => {
                let pause = match result {
                    Ok(dialed) => self.connected(state, address, dialed, shutdown),
                    Err(error) => {
                        self.observe.failed(address, &error);
                        Some(state.retry_after(address))
                    }
                };
                if let Some(known) = state.addresses.get_mut(&address) {
                    known.is_dialled = false;
                    known.not_before = pause.map(|pause| Instant::now() + pause);
                }
            }
        }
    }

    /// Serves a connection, unless its replica has one. Returns how long not to dial the address.
    fn connected(
        &self,
        state: &mut State,
        address: SocketAddr,
        dialed: Dialed,
        shutdown: &CancellationToken,
    ) -> Option<Duration> {
        let Dialed {
            io,
            replica,
            replicas,
        } = dialed;
        state.announced = replicas;
        if self.except.as_ref() == Some(&replica) {
            return Some(RETRY_ITSELF);
        }
        if state.by_replica.contains_key(&replica) {
            return Some(RETRY_DUPLICATE);
        }
        state.numbers += 1;
        let (number, drain) = (state.numbers, shutdown.child_token());
        let connection = Connection {
            address,
            number,
            replace_at: Instant::now() + REPLACE_AFTER.mul_f64(rand::rng().random_range(1.0..1.25)),
            drain: drain.clone(),
        };
        state.by_replica.insert(replica.clone(), connection);
        if let Some(known) = state.addresses.get_mut(&address) {
            known.connections += 1;
            known.failures = 0;
        }
        let server = self.server.clone();
        tracing::info!(%address, %replica, "connected to the gateway");
        state.tasks.spawn(async move {
            match serve::serve(io, &server, &drain).await {
                Ok(()) => tracing::info!(%address, %replica, "the connection to the gateway ended"),
                Err(error) => {
                    tracing::warn!(%address, %replica, %error, "the connection to the gateway failed")
                }
            }
            Done::Served { replica, number }
        });
        None
    }
}

impl State {
    /// Addresses to dial now, those without a connection first.
    fn due(&mut self, wanted: usize) -> Vec<SocketAddr> {
        let now = Instant::now();
        let dialled = self.addresses.values().filter(|known| known.is_dialled).count();
        let missing = wanted.saturating_sub(self.by_replica.len() + dialled);
        let mut due: Vec<_> = self
            .addresses
            .iter_mut()
            .filter(|(_, known)| !known.is_dialled && known.not_before.is_none_or(|at| at <= now))
            .collect();
        due.sort_by_key(|(_, known)| (known.connections, known.failures));
        due.into_iter()
            .take(missing)
            .map(|(address, known)| {
                known.is_dialled = true;
                *address
            })
            .collect()
    }

    /// Lets a connection that is old be replaced: it takes new streams until there is another one.
    fn replace_old(&mut self) {
        let now = Instant::now();
        let old: Vec<String> = self
            .by_replica
            .iter()
            .filter(|(_, connection)| connection.replace_at <= now)
            .map(|(replica, _)| replica.clone())
            .collect();
        for replica in old {
            if let Some(connection) = self.by_replica.remove(&replica) {
                self.disconnected(connection.address);
                self.replaced.push((now + OVERLAP, connection.drain));
            }
        }
        self.replaced.retain(|(at, drain)| {
            let is_over = *at <= now;
            if is_over {
                drain.cancel();
            }
            !is_over
        });
    }

    fn disconnected(&mut self, address: SocketAddr) {
        if let Some(known) = self.addresses.get_mut(&address) {
            known.connections = known.connections.saturating_sub(1);
        }
    }

    fn retry_after(&mut self, address: SocketAddr) -> Duration {
        let Some(known) = self.addresses.get_mut(&address) else {
            return RETRY_MAX;
        };
        let pause = RETRY_FIRST * 2_u32.pow(known.failures.min(6));
        known.failures += 1;
        // Connectors of many providers do not come back in the same moment.
        pause.min(RETRY_MAX).mul_f64(rand::rng().random_range(0.5..1.0))
    }
}
