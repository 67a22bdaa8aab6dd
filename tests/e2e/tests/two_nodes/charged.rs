//! A lease on one node, and what it is charged.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _, api::ListParams};
use leasehold_crds::{GpuReservation, LABEL_LEASE, payment::money::TokenAmount};
use leasehold_e2e::{Tenant, eventually, within};
use leasehold_planner::{
    escrow::{Account, Terms},
    ports::{BlockLevel, Payments as _},
};

use super::{LIMIT, PERIOD_SECONDS, active};

/// The lease.
pub(super) struct Charged<'a> {
    pub(super) tenant: &'a Tenant<'a>,
    name: &'static str,
    terms: Terms,
    /// Namespace of its pod, and name of its reservation.
    pub(super) namespace: String,
    /// The node of its pod.
    pub(super) node: String,
    /// When charging began, Unix seconds.
    started_at: u64,
}

/// The current time, Unix seconds. The kubelets, the agents and the chain use the same clock.
#[allow(
    clippy::disallowed_methods,
    reason = "the nodes and the chain use the same clock"
)]
pub(super) fn unix() -> anyhow::Result<u64> {
    Ok(SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)?
        .as_secs())
}

impl<'a> Charged<'a> {
    /// Waits until the lease is served.
    pub(super) async fn active(tenant: &'a Tenant<'a>, name: &'static str) -> anyhow::Result<Self> {
        let lease = active(tenant, name).await?;
        let (terms, account) = tenant.account(&lease).await?;
        let uid = lease.uid();
        let all = Api::<GpuReservation>::all(tenant.stack.client.clone());
        let all = all.list(&ListParams::default()).await?.items;
        let reservation = all
            .iter()
            .find(|r| Some(&r.spec.allocation.lease.uid) == uid.as_ref())
            .context("the reservation of the lease")?;
        Ok(Self {
            tenant,
            name,
            terms,
            namespace: reservation.name_any(),
            node: reservation.spec.nodes.first().context("a node")?.clone(),
            started_at: account.started_at,
        })
    }

    pub(super) async fn account(&self) -> anyhow::Result<Account> {
        let read = self
            .tenant
            .stack
            .payments
            .account(&self.terms, BlockLevel::Latest);
        Ok(read.await?.present().context("the account")?.clone())
    }

    /// Waits until the account is in a state.
    pub(super) async fn until(
        &self,
        limit: Duration,
        what: &str,
        wanted: impl Fn(&Account) -> bool,
    ) -> anyhow::Result<Account> {
        within(limit, &format!("{}: {what}", self.name), || async {
            let account = self.account().await?;
            Ok(if wanted(&account) {
                Ok(account)
            } else {
                Err(account)
            })
        })
        .await
    }

    /// Waits until the chain has a block of this time, Unix seconds.
    pub(super) async fn until_time(&self, time: u64) -> anyhow::Result<Account> {
        self.until(LIMIT, "time on the chain", |a| a.block_time >= time)
            .await
    }

    /// Checks that every second since the start was charged.
    pub(super) async fn was_never_paused(&self) -> anyhow::Result<()> {
        let account = self.account().await?;
        let (served, ran) = (
            account.legs[0].served_seconds,
            account.block_time - self.started_at,
        );
        ensure!(
            account.running == 1 && served == ran && account.legs[0].credited_seconds == 0,
            "{}: it ran for {ran} s, and {:?} were charged",
            self.name,
            account.legs[0]
        );
        Ok(())
    }

    /// Waits until the leg is paused and the seconds since the end of its containers are credited, which was between two
    /// times, Unix seconds. Checks that no second since then is charged, and that the provider loses no more than a period.
    pub(super) async fn credited_since(
        &self,
        (earliest, latest): (u64, u64),
        limit: Duration,
    ) -> anyhow::Result<Account> {
        let (ran, ran_at_most) = (earliest - self.started_at, latest - self.started_at);
        let paused = self
            .until(limit, "paused and credited", |a| {
                a.running == 0 && a.legs[0].served_seconds <= ran_at_most
            })
            .await?;
        let kept = paused.legs[0].served_seconds;
        eprintln!("         {}: charged {kept} of {ran} s", self.name);
        ensure!(
            kept + PERIOD_SECONDS >= ran,
            "{}: it ran for {ran} s, and only {kept} s are charged",
            self.name
        );
        Ok(paused)
    }

    /// Waits until the leg runs again, and checks that it is charged only since its containers run.
    pub(super) async fn resumes(&self, kept: u64) -> anyhow::Result<()> {
        self.until(LIMIT, "charged again", |a| {
            a.running == 1 && a.legs[0].served_seconds >= kept + 3
        })
        .await?;
        let runs_since = self.runs_since().await?;
        let account = self.account().await?;
        let (charged, ran) = (
            account.legs[0].served_seconds - kept,
            account.block_time.saturating_sub(runs_since),
        );
        ensure!(
            account.running == 1 && charged <= ran,
            "{}: its containers run again for {ran} s, and {charged} s are charged",
            self.name
        );
        Ok(())
    }

    /// The pods of the lease.
    pub(super) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.tenant.stack.client.clone(), &self.namespace)
    }

    /// Since when the containers of its pod run, Unix seconds.
    async fn runs_since(&self) -> anyhow::Result<u64> {
        let mine = ListParams::default().labels(LABEL_LEASE);
        eventually(&format!("{}: a pod that runs", self.name), || async {
            let pods = self.pods().list(&mine).await?.items;
            let since = pods.iter().find_map(leasehold_e2e::containers_run_since);
            Ok(match since {
                Some(since) => Ok(u64::try_from(since)?),
                None => Err(pods.into_iter().map(|p| p.status).collect::<Vec<_>>()),
            })
        })
        .await
    }

    /// Deletes the lease. Returns what it cost.
    pub(super) async fn ends(&self) -> anyhow::Result<TokenAmount> {
        self.tenant.delete(self.name).await?;
        self.tenant.until_gone(self.name, LIMIT).await?;
        earned(self.tenant, &self.terms).await
    }
}

/// What the leg of a closed account earned: its rate, times the seconds that it served.
pub(super) async fn earned(tenant: &Tenant<'_>, terms: &Terms) -> anyhow::Result<TokenAmount> {
    let read = tenant.stack.payments.account(terms, BlockLevel::Latest).await?;
    let account = read.present().context("the account")?.clone();
    ensure!(account.closed, "{account:?}");
    let seconds = account.legs[0].served_seconds;
    terms.legs[0].rate.earned_floor(seconds).context("in range")
}
