//! The life of a process, in a fixed order: metrics, signals, the admin server, the client, watches and caches. A process with
//! controllers and a leader is a [`crate::Process`] around it.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use futures::{
    FutureExt as _,
    future::{BoxFuture, try_join_all},
};
use kube::{
    Client,
    runtime::reflector::{Store, store::WriterDropped},
};
use leasehold_telemetry::{
    Health, Heartbeat, Latch, Metrics,
    admin::{self, Server},
    shutdown,
};
use tokio_util::sync::CancellationToken;

use crate::{
    ProcessArgs,
    cache::{self, Deadlines, Watched},
};

/// A process that reports whether it is ready and alive. `M` are its metrics.
pub struct Service<M> {
    client: Client,
    metrics: M,
    health: Health,
    is_ready: Latch,
    shutdown: CancellationToken,
    admin: Server,
    required: Vec<BoxFuture<'static, Result<(), WriterDropped>>>,
}

impl<M> Service<M> {
    /// Registers metrics, handles signals, serves the admin endpoints, and connects to the API server.
    ///
    /// # Errors
    /// When the admin address is taken, or the cluster's API is not configured.
    pub async fn start(
        args: &ProcessArgs,
        telemetry: &leasehold_telemetry::Settings,
        register: impl FnOnce(&mut Metrics) -> M,
    ) -> anyhow::Result<Self> {
        let mut metrics = Metrics::new();
        let registered = register(&mut metrics);
        let health = Health::new();
        let is_ready = health.latch("caches");
        let shutdown = shutdown::on_signals()?;
        let (address, metrics) = (telemetry.admin_address, Arc::new(metrics));
        let admin = admin::serve(address, metrics, health.clone(), shutdown.clone()).await?;
        Ok(Self {
            client: cache::client(args.kubeconfig.as_deref(), Deadlines::ORDINARY).await?,
            metrics: registered,
            health,
            is_ready,
            shutdown,
            admin,
            required: Vec::new(),
        })
    }

    /// The client of the cluster that the process runs for.
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// The process's metrics.
    pub const fn metrics(&self) -> &M {
        &self.metrics
    }

    /// It is cancelled by the first signal to end.
    pub const fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }

    /// The process is not ready before this store has its first list.
    pub fn require<K: Watched>(&mut self, store: &Store<K>) {
        let store = store.clone();
        self.required
            .push(async move { store.wait_until_ready().await }.boxed());
    }

    /// Waits for the required stores, and reports the process as ready. It returns whether it is: a signal ends the wait.
    ///
    /// # Errors
    /// When a watch ends.
    pub async fn ready(&mut self) -> anyhow::Result<bool> {
        let required = try_join_all(std::mem::take(&mut self.required));
        tokio::select! {
            () = self.shutdown.cancelled() => Ok(false),
            ready = required => {
                ready.context("a watch ended")?;
                self.is_ready.set();
                Ok(true)
            }
        }
    }

    /// The process is unhealthy when what this stands for has not beaten for that time.
    pub(crate) fn heartbeat(&self, name: &'static str, beats_within: Duration) -> Heartbeat {
        self.health.heartbeat(name, beats_within)
    }

    /// Reports that the process ends.
    pub(crate) fn end(&self) {
        self.health.end();
    }

    /// Ends the admin endpoints.
    pub async fn stop(self) {
        self.end();
        self.admin.stop().await;
    }
}
