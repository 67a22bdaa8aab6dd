//! Keeps a connection to every replica of the gateway.
//!
//! Replicas are found by names that resolve to one address for each of them, or behind one address that leads to any of
//! them: then the address is dialled until each replica was met, as the gateway tells its name and how many there are.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use futures::future::join_all;
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
/// Longest pause after an address led to a replica that has a connection already. It begins with a second and doubles.
const RETRY_DUPLICATE_MAX: Duration = Duration::from_secs(60);
/// A connection that lived so long was a good one.
const GOOD_AFTER: Duration = Duration::from_secs(30);
/// Pause after an address led to this process.
const RETRY_ITSELF: Duration = Duration::from_secs(60);
/// A connection is replaced after so long, plus up to a quarter, so that the token is checked again.
pub(crate) const REPLACE_AFTER: Duration = Duration::from_secs(30 * 60);
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
    duplicates: u32,
    not_before: Option<Instant>,
}

/// A connection that serves.
struct Connection {
    address: SocketAddr,
    /// Tells it from the connection before and after it.
    number: u64,
    since: Instant,
    replace_at: Instant,
    /// It takes new streams until there is another one.
    is_old: bool,
    drain: CancellationToken,
}

/// What a task has done.
enum Done {
    Dialled(SocketAddr, Result<Dialed, DialError>),
    Served { replica: String, number: u64 },
    Resolved(Vec<SocketAddr>),
}

/// What is known of replicas and of connections to them.
#[derive(Default)]
struct State {
    addresses: BTreeMap<SocketAddr, Address>,
    resolve_at: Option<Instant>,
    by_replica: BTreeMap<String, Connection>,
    /// How many replicas there are, as the last one told; 0 if none did.
    announced: usize,
    /// Connections that serve, replaced ones too.
    serving: usize,
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
            if state.resolve_at.is_none_or(|at| at <= Instant::now()) {
                // Not before the last one has ended.
                state.resolve_at = Some(Instant::now() + RESOLVE_WITHIN + RESOLVE_EVERY);
                let names = self.addresses.clone();
                state
                    .tasks
                    .spawn(async move { Done::Resolved(resolve(&names).await) });
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
            while state.serving > 0 {
                match state.tasks.join_next().await {
                    Some(Ok(Done::Served { .. })) => state.serving -= 1,
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
        let all = match state.announced {
            0 => state.addresses.len(),
            announced => announced,
        };
        all.saturating_sub(usize::from(self.except.is_some()))
            .min(CONNECTIONS_MAX)
    }

    /// Takes in what a task has done.
    fn note(&self, state: &mut State, done: Done, shutdown: &CancellationToken) {
        match done {
            Done::Resolved(found) => state.resolved(&found),
            Done::Served { replica, number } => state.served(&replica, number),
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
        if state
            .by_replica
            .get(&replica)
            .is_some_and(|connection| !connection.is_old)
        {
            return Some(state.duplicate(address));
        }
        let (number, drain) = state.insert(address, &replica, shutdown);
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

/// The addresses of names.
async fn resolve(names: &[String]) -> Vec<SocketAddr> {
    let lookups = names.iter().map(|name| async move {
        match time::timeout(RESOLVE_WITHIN, net::lookup_host(name)).await {
            Ok(Ok(addresses)) => addresses.take(CONNECTIONS_MAX).collect(),
            Ok(Err(error)) => {
                tracing::debug!(%name, %error, "the gateway's name does not resolve");
                Vec::new()
            }
            Err(_) => {
                tracing::debug!(%name, "no answer about the gateway's name");
                Vec::new()
            }
        }
    });
    join_all(lookups).await.concat()
}

impl State {
    /// Takes in the addresses that names have now.
    fn resolved(&mut self, found: &[SocketAddr]) {
        self.resolve_at = Some(Instant::now() + RESOLVE_EVERY);
        // A resolver that fails tells nothing about the addresses.
        if found.is_empty() {
            return;
        }
        self.addresses
            .retain(|address, known| found.contains(address) || known.is_dialled);
        for address in found {
            self.addresses.entry(*address).or_default();
        }
    }

    /// A connection has ended.
    fn served(&mut self, replica: &str, number: u64) {
        self.serving = self.serving.saturating_sub(1);
        let Some(connection) = self.by_replica.get(replica).filter(|c| c.number == number) else {
            return;
        };
        let (address, is_good) = (connection.address, connection.since.elapsed() >= GOOD_AFTER);
        self.by_replica.remove(replica);
        self.disconnected(address);
        // A gateway that ends each connection at once is not dialled without a pause.
        if is_good && let Some(known) = self.addresses.get_mut(&address) {
            known.failures = 0;
        }
        let pause = self.retry_after(address);
        if let Some(known) = self.addresses.get_mut(&address) {
            known.not_before = Some(Instant::now() + pause);
        }
    }

    /// Keeps a connection that begins to serve. One that it replaces takes new streams for some seconds more.
    fn insert(
        &mut self,
        address: SocketAddr,
        replica: &str,
        shutdown: &CancellationToken,
    ) -> (u64, CancellationToken) {
        self.numbers += 1;
        self.serving += 1;
        let (now, drain) = (Instant::now(), shutdown.child_token());
        let connection = Connection {
            address,
            number: self.numbers,
            since: now,
            replace_at: now + REPLACE_AFTER.mul_f64(rand::rng().random_range(1.0..1.25)),
            is_old: false,
            drain: drain.clone(),
        };
        if let Some(replaced) = self.by_replica.insert(replica.to_owned(), connection) {
            self.disconnected(replaced.address);
            self.replaced.push((now + OVERLAP, replaced.drain));
        }
        if let Some(known) = self.addresses.get_mut(&address) {
            known.connections += 1;
            known.duplicates = 0;
        }
        (self.numbers, drain)
    }

    /// Addresses to dial now: those that no connection leads to, and others while replicas are missing.
    fn due(&mut self, wanted: usize) -> Vec<SocketAddr> {
        let now = Instant::now();
        let dialled = self.addresses.values().filter(|known| known.is_dialled).count();
        let current = self
            .by_replica
            .values()
            .filter(|connection| !connection.is_old)
            .count();
        let missing = wanted.saturating_sub(current + dialled);
        let mut due: Vec<_> = self
            .addresses
            .iter_mut()
            .filter(|(_, known)| !known.is_dialled && known.not_before.is_none_or(|at| at <= now))
            .collect();
        due.sort_by_key(|(_, known)| (known.connections, known.failures));
        due.into_iter()
            .enumerate()
            .filter(|(number, (_, known))| *number < missing || known.connections == 0)
            .take(CONNECTIONS_MAX.saturating_sub(current + dialled))
            .map(|(_, (address, known))| {
                known.is_dialled = true;
                *address
            })
            .collect()
    }

    /// Lets connections that are old be replaced.
    fn replace_old(&mut self) {
        let now = Instant::now();
        for connection in self.by_replica.values_mut() {
            connection.is_old = connection.replace_at <= now;
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

    /// The pause after an address led to a replica that has a connection.
    fn duplicate(&mut self, address: SocketAddr) -> Duration {
        let Some(known) = self.addresses.get_mut(&address) else {
            return RETRY_DUPLICATE_MAX;
        };
        let pause = Duration::from_secs(1) * 2_u32.pow(known.duplicates.min(6));
        known.duplicates += 1;
        jittered(pause.min(RETRY_DUPLICATE_MAX))
    }

    /// The pause after a failure at an address.
    fn retry_after(&mut self, address: SocketAddr) -> Duration {
        let Some(known) = self.addresses.get_mut(&address) else {
            return RETRY_MAX;
        };
        let pause = RETRY_FIRST * 2_u32.pow(known.failures.min(6));
        known.failures += 1;
        jittered(pause.min(RETRY_MAX))
    }
}

/// Connectors of many providers do not come back in the same moment.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> SocketAddr {
        ([192, 0, 2, last], 443).into()
    }

    /// The addresses that are dialled, of which none answers yet.
    fn dialled(state: &mut State, wanted: usize) -> Vec<SocketAddr> {
        let due = state.due(wanted);
        for address in &due {
            if let Some(known) = state.addresses.get_mut(address) {
                known.is_dialled = false;
            }
        }
        due
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_connection_serves_until_there_is_another_one() {
        let (mut state, shutdown) = (State::default(), CancellationToken::new());
        state.resolved(&[address(1)]);
        assert_eq!(dialled(&mut state, 1), [address(1)]);
        let (_, drain) = state.insert(address(1), "a", &shutdown);
        assert!(dialled(&mut state, 1).is_empty());

        time::advance(2 * REPLACE_AFTER).await;
        state.replace_old();
        assert_eq!(dialled(&mut state, 1), [address(1)], "it is to be replaced");
        time::advance(2 * REPLACE_AFTER).await;
        state.replace_old();
        assert!(
            !drain.is_cancelled(),
            "the gateway could not be reached: the old one goes on"
        );

        state.insert(address(1), "a", &shutdown);
        state.replace_old();
        assert!(!drain.is_cancelled(), "both take new streams for some seconds");
        time::advance(OVERLAP).await;
        state.replace_old();
        assert!(drain.is_cancelled());
        assert_eq!((state.by_replica.len(), state.serving), (1, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_gateway_that_ends_each_connection_is_not_dialled_without_a_pause() {
        let (mut state, shutdown) = (State::default(), CancellationToken::new());
        state.resolved(&[address(1)]);
        let mut dials = 0;
        for _ in 0..600 {
            for address in dialled(&mut state, 1) {
                dials += 1;
                let (number, _) = state.insert(address, "a", &shutdown);
                state.served("a", number);
            }
            time::advance(Duration::from_millis(100)).await;
        }
        assert!((6..20).contains(&dials), "{dials} dials in a minute");
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_too_many_is_seldom_dialled() {
        let (mut state, shutdown) = (State::default(), CancellationToken::new());
        // A load balancer in three zones, in front of two replicas.
        state.resolved(&[address(1), address(2), address(3)]);
        state.insert(address(1), "a", &shutdown);
        state.insert(address(2), "b", &shutdown);
        let mut dials = 0;
        for _ in 0..6000 {
            for address in dialled(&mut state, 2) {
                dials += 1;
                let pause = state.duplicate(address);
                if let Some(known) = state.addresses.get_mut(&address) {
                    known.not_before = Some(Instant::now() + pause);
                }
            }
            time::advance(Duration::from_millis(100)).await;
        }
        assert!((10..40).contains(&dials), "{dials} dials in ten minutes");
        // A new replica behind a name is another address that nothing leads to.
        state.resolved(&[address(1), address(2), address(4)]);
        assert_eq!(dialled(&mut state, 2), [address(4)]);
    }

    #[tokio::test]
    async fn a_resolver_that_fails_takes_no_address_away() {
        let mut state = State::default();
        state.resolved(&[address(1)]);
        state.resolved(&[]);
        assert_eq!(dialled(&mut state, 1), [address(1)]);
    }
}
