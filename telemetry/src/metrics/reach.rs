//! Metrics of the gateway and of the connector.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::{Answer, Direction, Metrics, StreamOutcome};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByAnswer {
    answer: Answer,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    outcome: StreamOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByDirection {
    direction: Direction,
}

/// Bytes by direction.
#[derive(Clone, Debug)]
struct Bytes(Family<ByDirection, Counter>);

impl Bytes {
    fn register(metrics: &mut Metrics, help: &str) -> Self {
        let bytes = Family::<ByDirection, Counter>::default();
        for &direction in Direction::ALL {
            drop(bytes.get_or_create(&ByDirection { direction }));
        }
        let registry = metrics.own().sub_registry_with_prefix("stream");
        registry.register("bytes", help, bytes.clone());
        Self(bytes)
    }

    fn moved(&self, to_pod: u64, from_pod: u64) {
        for (direction, bytes) in [(Direction::ToPod, to_pod), (Direction::FromPod, from_pod)] {
            self.0.get_or_create(&ByDirection { direction }).inc_by(bytes);
        }
    }
}

/// Something that is open as long as this exists.
#[derive(Debug)]
pub struct Open(Gauge);

impl Open {
    fn of(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The metrics of one replica of the gateway. Clones share their values.
#[derive(Clone, Debug)]
pub struct Gateway {
    connectors: Gauge,
    responding: Gauge,
    connections: Gauge,
    overloads: Counter,
    answers: Family<ByAnswer, Counter>,
    bytes: Bytes,
}

impl Gateway {
    /// Registers all metrics of a gateway.
    pub fn register(metrics: &mut Metrics) -> Self {
        let it = Self {
            connectors: Gauge::default(),
            responding: Gauge::default(),
            connections: Gauge::default(),
            overloads: Counter::default(),
            answers: Family::default(),
            bytes: Bytes::register(
                metrics,
                "Bytes of WebSockets and of connections that are passed through",
            ),
        };
        for &answer in Answer::ALL {
            drop(it.answers.get_or_create(&ByAnswer { answer }));
        }
        let registry = metrics.own().sub_registry_with_prefix("gateway");
        registry.register(
            "connectors",
            "Connections of connectors to this replica",
            it.connectors.clone(),
        );
        registry.register(
            "connectors_responding",
            "Connections of connectors that answer pings in time",
            it.responding.clone(),
        );
        registry.register("connections", "Open connections of users", it.connections.clone());
        registry.register(
            "overloads",
            "Connections that were refused because there were too many",
            it.overloads.clone(),
        );
        registry.register("answers", "Answers to requests of users", it.answers.clone());
        it
    }

    /// Sets the number of connections of connectors, and of those that answer pings.
    pub fn connectors(&self, connected: usize, responding: usize) {
        self.connectors.set(i64::try_from(connected).unwrap_or(i64::MAX));
        self.responding.set(i64::try_from(responding).unwrap_or(i64::MAX));
    }

    /// Counts a connection of a user, until the value is dropped.
    #[must_use]
    pub fn connected(&self) -> Open {
        Open::of(&self.connections)
    }

    /// Counts a connection that was refused because there were too many.
    pub fn overloaded(&self) {
        self.overloads.inc();
    }

    /// Counts an answer.
    pub fn answered(&self, answer: Answer) {
        self.answers.get_or_create(&ByAnswer { answer }).inc();
    }

    /// Counts the bytes of a stream that has ended.
    pub fn moved(&self, to_pod: u64, from_pod: u64) {
        self.bytes.moved(to_pod, from_pod);
    }
}

/// The metrics of one replica of the connector. Clones share their values.
#[derive(Clone, Debug)]
pub struct Connector {
    connections: Gauge,
    wanted: Gauge,
    failures: Counter,
    streams: Gauge,
    opened: Family<ByOutcome, Counter>,
    bytes: Bytes,
}

impl Connector {
    /// Registers all metrics of a connector.
    pub fn register(metrics: &mut Metrics) -> Self {
        let it = Self {
            connections: Gauge::default(),
            wanted: Gauge::default(),
            failures: Counter::default(),
            streams: Gauge::default(),
            opened: Family::default(),
            bytes: Bytes::register(metrics, "Bytes between the gateway and pods of leases"),
        };
        for &outcome in StreamOutcome::ALL {
            drop(it.opened.get_or_create(&ByOutcome { outcome }));
        }
        let registry = metrics.own().sub_registry_with_prefix("connector");
        registry.register(
            "connections",
            "Replicas of the gateway that this replica is connected to",
            it.connections.clone(),
        );
        registry.register(
            "connections_wanted",
            "Replicas of the gateway that there are",
            it.wanted.clone(),
        );
        registry.register(
            "connection_failures",
            "Connections to the gateway that could not be opened",
            it.failures.clone(),
        );
        registry.register("streams", "Open streams to pods of leases", it.streams.clone());
        registry.register(
            "streams_opened",
            "Streams that the gateway asked for",
            it.opened.clone(),
        );
        it
    }

    /// Sets the number of replicas with a connection, and of those that there are.
    pub fn connected(&self, connections: usize, wanted: usize) {
        self.connections
            .set(i64::try_from(connections).unwrap_or(i64::MAX));
        self.wanted.set(i64::try_from(wanted).unwrap_or(i64::MAX));
    }

    /// Counts a connection that could not be opened.
    pub fn failed(&self) {
        self.failures.inc();
    }

    /// Counts a stream that was asked for.
    pub fn asked(&self, outcome: StreamOutcome) {
        self.opened.get_or_create(&ByOutcome { outcome }).inc();
    }

    /// Counts an open stream, until the value is dropped.
    #[must_use]
    pub fn opened(&self) -> Open {
        Open::of(&self.streams)
    }

    /// Counts the bytes of a stream that has ended.
    pub fn moved(&self, to_pod: u64, from_pod: u64) {
        self.bytes.moved(to_pod, from_pod);
    }
}
