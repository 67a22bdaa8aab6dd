//! What every process with controllers is made of: watches and their caches, the work queue, leader election, writes to
//! the API server, and the [`Process`] that starts and ends them in a fixed order.

pub mod api_writes;
pub mod cache;
mod clock;
mod error;
mod events;
mod leader;
mod process;
pub mod queue;
mod service;

pub use clock::SystemClock;
pub use error::Error;
pub use events::Events;
pub use process::{Process, ProcessArgs};
pub use service::Service;
