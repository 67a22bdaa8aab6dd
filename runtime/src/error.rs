//! Errors of a reconcile, and how each is retried.

use std::time::Duration;

use leasehold_telemetry::metrics::Class;

/// A reconcile that could not be finished. The next one continues from what was written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object itself is invalid.
    #[error("{0}")]
    Object(String),
    /// The API server refused the request or was not reached.
    #[error("{doing}")]
    Kube {
        /// The step that failed.
        doing: &'static str,
        /// The error of the request.
        #[source]
        source: Box<kube::Error>,
    },
    /// Another dependency failed.
    #[error("{doing}")]
    Dependency {
        /// The step that failed.
        doing: &'static str,
        /// How it is retried.
        class: Class,
        /// The error of the dependency.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// Wraps an API error with the step that failed.
    pub fn kube(doing: &'static str) -> impl FnOnce(kube::Error) -> Self {
        move |source| Self::Kube {
            doing,
            source: Box::new(source),
        }
    }

    /// How it is retried.
    pub fn class(&self) -> Class {
        match self {
            Self::Object(_) => Class::User,
            Self::Dependency { class, .. } => *class,
            Self::Kube { source, .. } => match source.as_ref() {
                kube::Error::Api(status) if status.code == 409 => Class::Conflict,
                kube::Error::Api(status) if status.code == 422 || status.code == 400 => Class::User,
                _ => Class::Transient,
            },
        }
    }

    /// The words in which the API server refused a request for good: by admission, quota, permissions or validation.
    pub fn refusal(&self) -> Option<&str> {
        match self {
            Self::Kube { source, .. } => match source.as_ref() {
                kube::Error::Api(status) if matches!(status.code, 400 | 403 | 422) => Some(&status.message),
                _ => None,
            },
            Self::Object(_) | Self::Dependency { .. } => None,
        }
    }

    /// Logs what failed and why, with the object that it concerns.
    pub fn log(&self, kind: &str, name: &str) {
        let why = std::error::Error::source(self)
            .map(ToString::to_string)
            .unwrap_or_default();
        match self.class() {
            Class::Conflict => tracing::debug!(kind, name, %why, "{self}"),
            Class::User | Class::Transient => tracing::warn!(kind, name, %why, "{self}"),
        }
    }

    /// Delay before the next attempt.
    pub fn retry_after(&self) -> Duration {
        match self.class() {
            Class::Conflict => Duration::from_millis(100),
            Class::Transient => Duration::from_secs(2),
            Class::User => Duration::from_secs(30),
        }
    }
}
