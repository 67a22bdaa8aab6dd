//! The life of a process with controllers, in a fixed order: metrics, signals, the admin server, the client, watches and
//! caches, leadership, controllers and loops; at the end all of them in reverse.
//!
//! A role creates its [`Process`], opens its watches, and lets each controller and loop add itself; [`Process::run`] does
//! the rest.

use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use futures::{
    FutureExt as _,
    future::{BoxFuture, LocalBoxFuture, join_all},
};
use kube::{Client, runtime::reflector::Store};
use leasehold_telemetry::{
    Heartbeat,
    metrics::{Controller, Operator, Role},
};
use tokio::task::JoinSet;

use crate::{
    Service,
    cache::Watched,
    leader,
    queue::{Queue, ReconcileError, RequeueAfter},
};

/// Flags of every process with controllers.
#[derive(clap::Args, Debug, Clone)]
pub struct ProcessArgs {
    /// Namespace of this operator, with its leader Lease and the Secrets that it reads.
    #[arg(long, env = "POD_NAMESPACE", default_value = "leasehold-system")]
    pub namespace: String,
    /// Name of this replica in leader Leases and Events.
    #[arg(long, env = "POD_NAME", default_value = "leasehold-operator")]
    pub identity: String,
    /// Kubeconfig of the cluster. If absent, the ServiceAccount of the pod is used.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Act without leader election. This is safe, because resource versions and the chain prevent conflicts, but
    /// wasteful. For tests.
    #[arg(long, hide = true)]
    pub no_leader_election: bool,
}

/// A loop beside the controllers, which must report that it is alive.
struct Loop {
    name: &'static str,
    beats_within: Duration,
    start: Box<dyn FnOnce(Heartbeat) -> BoxFuture<'static, ()>>,
}

/// A process that is starting: what it will run is added before [`Process::run`].
pub struct Process {
    args: ProcessArgs,
    service: Service<Operator>,
    controllers: Vec<LocalBoxFuture<'static, ()>>,
    loops: Vec<Loop>,
}

impl Process {
    /// Registers metrics, handles signals, serves the admin endpoints, and connects to the API server.
    ///
    /// # Errors
    /// When the admin address is taken, or the cluster's API is not configured.
    pub async fn start(
        role: Role,
        args: &ProcessArgs,
        telemetry: &leasehold_telemetry::Settings,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            args: args.clone(),
            service: Service::start(args, telemetry, |metrics| Operator::register(metrics, role)).await?,
            controllers: Vec::new(),
            loops: Vec::new(),
        })
    }

    /// The client of the cluster that the process runs for.
    pub const fn client(&self) -> &Client {
        self.service.client()
    }

    /// The process's metrics.
    pub const fn metrics(&self) -> &Operator {
        self.service.metrics()
    }

    /// The process is not ready, and runs nothing, before this store has its first list.
    pub fn require<K: Watched>(&mut self, store: &Store<K>) {
        self.service.require(store);
    }

    /// Adds a controller: its queued objects are reconciled while this replica leads, at most `concurrency` at once.
    pub fn add_controller<K, R>(
        &mut self,
        controller: Controller,
        concurrency: usize,
        (queue, store): (&Queue<K>, &Store<K>),
        reconcile: impl Fn(Arc<K>) -> R + 'static,
    ) where
        K: Watched,
        R: Future<Output = Result<RequeueAfter, ReconcileError>> + Send + 'static,
    {
        let (queue, store, shutdown) = (queue.clone(), store.clone(), self.service.shutdown().clone());
        let metrics = self.metrics().reconcile.clone();
        let run = async move {
            queue
                .run(&store, concurrency, (controller, &metrics), &shutdown, reconcile)
                .await;
        };
        self.controllers.push(run.boxed_local());
    }

    /// Adds a loop that runs while this replica leads. The process is unhealthy when the loop has not beaten for
    /// `beats_within`, and ends when the loop ends.
    pub fn add_loop<F>(
        &mut self,
        name: &'static str,
        beats_within: Duration,
        run: impl FnOnce(Heartbeat) -> F + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        self.loops.push(Loop {
            name,
            beats_within,
            start: Box::new(|heartbeat| run(heartbeat).boxed()),
        });
    }

    /// Waits for caches and for leadership, then runs all controllers and loops until a signal.
    ///
    /// # Errors
    /// When a watch or a loop ends, or leadership is lost.
    pub async fn run(mut self, leader_lease: &str) -> anyhow::Result<ExitCode> {
        if !self.service.ready().await? {
            return Ok(ExitCode::SUCCESS);
        }
        let waited = leader::wait(leader_lease, &self.args, self.service.shutdown()).await?;
        let Some(mut leadership) = waited else {
            self.service.stop().await;
            return Ok(ExitCode::SUCCESS);
        };
        self.metrics().leader.set(true);
        let mut loops = JoinSet::new();
        for Loop {
            name,
            beats_within,
            start,
        } in self.loops
        {
            loops.spawn(start(self.service.heartbeat(name, beats_within)));
        }
        let ended = tokio::select! {
            _ = join_all(self.controllers) => Ok(()),
            lost = leadership.lost() => lost,
            Some(ended) = loops.join_next() => Err(anyhow::anyhow!("a loop ended: {ended:?}")),
        };
        self.service.end();
        loops.shutdown().await;
        leadership.release().await;
        self.service.stop().await;
        ended.map(|()| ExitCode::SUCCESS)
    }
}
