//! Follows one lease: prints each phase as the API server reports it, and fails early if a lease cannot proceed.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use futures::{StreamExt as _, stream::BoxStream};
use kube::runtime::{
    WatchStreamExt as _,
    watcher::{self, Event},
};
use leasehold_crds::{
    GpuLease,
    lease::{GpuLeaseStatus, Phase},
    shared::conditions,
};

use crate::{Tenant, console::Console};

/// Reasons that require a user's action, so that waiting is useless.
const NEEDS_ACTION: &[(&str, &[&str])] = &[
    (
        "Funded",
        &[
            "InsufficientFunds",
            "InsufficientGas",
            "LimitExceeded",
            "WalletNotReadable",
            "WalletMalformed",
            "OtherWallet",
        ],
    ),
    ("Settled", &["InsufficientGas", "LimitExceeded", "Refused"]),
];

/// Watches one lease and prints each phase.
pub struct Follow<'a> {
    console: &'a Console,
    name: String,
    began: Instant,
    stream: BoxStream<'a, watcher::Result<Event<GpuLease>>>,
    latest: Option<GpuLease>,
    gone: bool,
    /// Each phase and the time at which it was seen, since the lease was applied.
    pub phases: Vec<(Phase, Duration)>,
}

impl<'a> Follow<'a> {
    /// Creates it before the lease exists.
    #[must_use]
    pub fn new(console: &'a Console, tenant: &Tenant<'_>, name: &str) -> Self {
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        Self {
            console,
            name: name.to_owned(),
            began: Instant::now(),
            stream: watcher::watcher(tenant.leases(), config)
                .default_backoff()
                .boxed(),
            latest: None,
            gone: false,
            phases: Vec::new(),
        }
    }

    /// Starts the clock of the story.
    pub fn begin(&mut self) {
        self.began = Instant::now();
    }

    /// Time since [`begin`](Self::begin).
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Prints what just happened.
    pub fn event(&self, what: &str, text: &str) {
        self.console.at(self.began.elapsed(), what, text);
    }

    /// Waits until the lease satisfies a condition.
    pub async fn until(
        &mut self,
        limit: Duration,
        what: &str,
        wanted: impl Fn(&GpuLeaseStatus) -> bool,
    ) -> anyhow::Result<GpuLease> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(lease) = &self.latest
                && lease.status.as_ref().is_some_and(&wanted)
            {
                return Ok(lease.clone());
            }
            if self.gone {
                bail!("{} is gone while waiting for: {what}", self.name);
            }
            self.hopeless()?;
            self.next(deadline, limit, what).await?;
        }
    }

    /// Waits until the lease no longer exists, and returns its last state.
    pub async fn until_gone(&mut self, limit: Duration) -> anyhow::Result<GpuLease> {
        let deadline = Instant::now() + limit;
        while !self.gone {
            self.hopeless()?;
            self.next(deadline, limit, "its end").await?;
        }
        self.latest
            .clone()
            .with_context(|| format!("{} was never seen", self.name))
    }

    /// Keeps following while other work is done.
    pub async fn meanwhile<T>(&mut self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                Some(event) = self.stream.next() => if let Ok(event) = event { self.take(event) },
            }
        }
    }

    async fn next(&mut self, deadline: Instant, limit: Duration, what: &str) -> anyhow::Result<()> {
        match tokio::time::timeout_at(deadline.into(), self.stream.next()).await {
            Ok(Some(Ok(event))) => self.take(event),
            // The watch restarts by itself.
            Ok(Some(Err(_))) => {}
            Ok(None) => bail!("the watch of {} ended", self.name),
            Err(_) => bail!(
                "{}: condition not met within {} s ({what}); {}",
                self.name,
                limit.as_secs(),
                self.state()
            ),
        }
        Ok(())
    }

    fn take(&mut self, event: Event<GpuLease>) {
        let lease = match event {
            Event::Apply(lease) | Event::InitApply(lease) => lease,
            Event::Delete(lease) => {
                self.gone = true;
                lease
            }
            Event::Init | Event::InitDone => return,
        };
        if let Some(status) = &lease.status
            && self.phases.last().map(|(phase, _)| *phase) != Some(status.phase)
        {
            let elapsed = self.began.elapsed();
            self.phases.push((status.phase, elapsed));
            self.console
                .at(elapsed, &format!("{:?}", status.phase), meaning(status.phase));
        }
        self.latest = Some(lease);
    }

    fn hopeless(&self) -> anyhow::Result<()> {
        let Some(status) = self.latest.as_ref().and_then(|l| l.status.as_ref()) else {
            return Ok(());
        };
        for (kind, reasons) in NEEDS_ACTION {
            if let Some(condition) = conditions::find(&status.conditions, kind)
                && condition.status == "False"
                && reasons.contains(&condition.reason.as_str())
            {
                bail!(
                    "{} stays {:?}: {kind} is False, {}: {}",
                    self.name,
                    status.phase,
                    condition.reason,
                    condition.message
                );
            }
        }
        Ok(())
    }

    /// Describes the state of the lease and its reason.
    fn state(&self) -> String {
        let Some(status) = self.latest.as_ref().and_then(|l| l.status.as_ref()) else {
            return "the operator has not reconciled it".into();
        };
        let ready = conditions::find(&status.conditions, "Ready");
        let why = ready.map(|c| format!("{} {}", c.reason, c.message));
        format!("it is {:?}: {}", status.phase, why.unwrap_or_default())
    }
}

const fn meaning(phase: Phase) -> &'static str {
    match phase {
        Phase::Pending => "matching offers; nothing is paid",
        Phase::Matched => "providers reserve and accept; nothing is paid",
        Phase::Funded => "the deposit is in the escrow",
        Phase::Provisioning => "the workload is starting; nothing is charged yet",
        Phase::Active => "the workload serves, and is charged per second",
        Phase::Suspended => "the funds are spent; the storage is kept",
        Phase::Settling => "the lease ends; the escrow account is being closed",
        Phase::Closed => "providers are paid, the rest is refunded",
    }
}
