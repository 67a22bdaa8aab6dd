//! The tunnel: one protocol with two ends, by which a market reaches pods behind any NAT.
//!
//! A provider's connector *dials* each replica of the market's gateway with TLS 1.3 and authenticates in an HTTP/1.1
//! Upgrade ([`dial`], [`accept`]). Then the roles swap: who dialled *serves* HTTP/2 on that connection ([`serve`]), and who
//! accepted opens CONNECT streams on it ([`Tunnel`]). There is no protocol of our own above HTTP/2 (RFC 9113). Replicas of
//! the gateway dial each other in the same way, and forward streams to the replica that has a connector's connection.
//!
//! Both ends bound what a stream can hold: 1 MiB in each direction ([`wire::STREAM_WINDOW`]), and a stream that nobody reads
//! is ended ([`splice()`]).

pub mod accept;
pub mod dial;
mod forward;
pub mod limits;
pub mod links;
mod pings;
mod registry;
pub mod serve;
pub mod splice;
mod stream;
pub mod tcp;
pub mod tls;
mod tunnel;
pub mod wire;

pub use accept::{Authenticate, Denied};
pub use forward::Forward;
pub use leasehold_planner::provider::connector::StreamRequest;
pub use links::Links;
pub use registry::{Tunnels, TunnelsFull};
pub use serve::{Refused, Serve};
pub use splice::splice;
pub use stream::TunnelStream;
pub use tunnel::{OpenError, Tunnel};
pub use wire::Identity;
