//! A tenant's eyes on one lease: each phase as the API server tells it, and why it does not go on.

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

/// Reasons that no waiting cures: somebody has to do something.
const HOPELESS: &[(&str, &[&str])] = &[
    (
        "Funded",
        &[
            "InsufficientFunds",
            "InsufficientGas",
            "WalletNotReadable",
            "WalletMalformed",
        ],
    ),
    ("Settled", &["InsufficientGas", "Refused"]),
];

/// Watches one lease and tells each phase.
pub struct Follow<'a> {
    console: &'a Console,
    name: String,
    began: Instant,
    stream: BoxStream<'a, watcher::Result<Event<GpuLease>>>,
    latest: Option<GpuLease>,
    gone: bool,
    /// Each phase and when it was seen, after the lease was applied.
    pub phases: Vec<(Phase, Duration)>,
}

impl<'a> Follow<'a> {
    /// Begins before the lease is there.
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

    /// The time of the story begins now.
    pub fn begin(&mut self) {
        self.began = Instant::now();
    }

    /// Since [`begin`](Self::begin).
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Tells what happened just now.
    pub fn tell(&self, what: &str, text: &str) {
        self.console.at(self.began.elapsed(), what, text);
    }

    /// Waits until the lease is as wanted.
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
                bail!("{} is gone; what was waited for: {what}", self.name);
            }
            self.hopeless()?;
            self.next(deadline, limit, what).await?;
        }
    }

    /// Waits until the API server has the lease no more, and returns it as it was last.
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

    /// Looks on while something else is waited for.
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
            // The watch begins again by itself.
            Ok(Some(Err(_))) => {}
            Ok(None) => bail!("the watch of {} ended", self.name),
            Err(_) => bail!(
                "{} did not get there within {} s ({what}); {}",
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
        for (kind, reasons) in HOPELESS {
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

    /// Where the lease is and why, for a person.
    fn state(&self) -> String {
        let Some(status) = self.latest.as_ref().and_then(|l| l.status.as_ref()) else {
            return "the operator has not answered it".into();
        };
        let ready = conditions::find(&status.conditions, "Ready");
        let why = ready.map(|c| format!("{} {}", c.reason, c.message));
        format!("it is {:?}: {}", status.phase, why.unwrap_or_default())
    }
}

const fn meaning(phase: Phase) -> &'static str {
    match phase {
        Phase::Pending => "offers are compared; nothing is paid",
        Phase::Matched => "providers reserve and sign; nothing is paid",
        Phase::Funded => "the deposit is in the escrow",
        Phase::Provisioning => "the workload is made ready; nothing is charged yet",
        Phase::Active => "it serves, and is charged by the second from now on",
        Phase::Suspended => "the funds are spent; the storage stays",
        Phase::Settling => "it ends; the escrow is being closed",
        Phase::Closed => "providers are paid, the rest is refunded",
    }
}
