//! What can go wrong on a pass, and what each wants to be done about it.

use std::time::Duration;

use leasehold_telemetry::metrics::Class;

/// A pass that could not be finished. What was decided stands; the next pass carries on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object itself can't be used.
    #[error("{0}")]
    Object(String),
    /// The API server refused or was not reached.
    #[error("{doing}")]
    Kube {
        /// What was being done.
        doing: &'static str,
        /// What it said.
        #[source]
        source: Box<kube::Error>,
    },
}

impl Error {
    /// Wraps an API error with what was being done.
    pub fn kube(doing: &'static str) -> impl FnOnce(kube::Error) -> Self {
        move |source| Self::Kube {
            doing,
            source: Box::new(source),
        }
    }

    /// What it wants.
    pub fn class(&self) -> Class {
        match self {
            Self::Object(_) => Class::User,
            Self::Kube { source, .. } => match source.as_ref() {
                kube::Error::Api(status) if status.code == 409 => Class::Conflict,
                kube::Error::Api(status) if status.code == 422 || status.code == 400 => Class::User,
                _ => Class::Transient,
            },
        }
    }

    /// Says what failed and why, and what it concerns.
    pub fn log(&self, kind: &str, name: &str) {
        let why = std::error::Error::source(self)
            .map(ToString::to_string)
            .unwrap_or_default();
        match self.class() {
            Class::Conflict => tracing::debug!(kind, name, %why, "{self}"),
            Class::User | Class::Transient => tracing::warn!(kind, name, %why, "{self}"),
        }
    }

    /// When to try again.
    pub fn retry_after(&self) -> Duration {
        match self.class() {
            Class::Conflict => Duration::from_millis(100),
            Class::Transient => Duration::from_secs(2),
            Class::User => Duration::from_secs(30),
        }
    }
}
