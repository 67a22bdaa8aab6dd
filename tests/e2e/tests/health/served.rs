//! A lease that is served: its account, what the objects show of its GPU, and its end.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use leasehold_crds::{
    GpuLease, GpuNode,
    lease::Phase,
    payment::money::TokenAmount,
    provider::node::DeviceHealth,
    shared::conditions::{find, is_true},
};
use leasehold_e2e::{Tenant, eventually};
use leasehold_planner::{
    escrow::{Account, Terms},
    ports::{BlockLevel, Payments as _},
};

use super::{HEALTHY_PROVIDER, LIMIT, NODE, gpu_node, not_sold, offered};

/// When each came, since the GPU broke or was well again.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) node: Option<Duration>,
    pub(super) lease: Option<Duration>,
    pub(super) sale: Option<Duration>,
    pub(super) leg: Option<Duration>,
    pub(super) credit: Option<Duration>,
}

impl Seen {
    fn all(&self) -> bool {
        let all = [self.node, self.lease, self.sale, self.leg, self.credit];
        all.iter().all(Option::is_some)
    }
}

/// What runs of the lease and the account it is paid from.
pub(super) struct Served<'a> {
    pub(super) tenant: &'a Tenant<'a>,
    pub(super) name: &'static str,
    pub(super) gpu: String,
    pub(super) terms: Terms,
}

impl Served<'_> {
    pub(super) async fn account(&self) -> anyhow::Result<Account> {
        let lease = self.tenant.leases().get(self.name).await?;
        Ok(self.tenant.account(&lease).await?.1)
    }

    pub(super) async fn served_at_least(&self, seconds: u64) -> anyhow::Result<Account> {
        eventually(&format!("{seconds} served seconds"), || async {
            let account = self.account().await?;
            let served = account.legs[0].served_seconds;
            Ok(if served >= seconds {
                Ok(account)
            } else {
                Err(served)
            })
        })
        .await
    }

    /// The end: what is not refunded is rate times seconds served, to the unit.
    pub(super) async fn ends_exactly(&self, before: TokenAmount) -> anyhow::Result<()> {
        let tenant = self.tenant;
        tenant.delete(self.name).await?;
        tenant.until_gone(self.name, LIMIT).await?;
        let read = tenant
            .stack
            .payments
            .account(&self.terms, BlockLevel::Latest)
            .await?;
        let closed = read.present().context("the account")?.clone();
        let seconds = closed.legs[0].served_seconds;
        let due = self.terms.legs[0]
            .rate
            .earned_floor(seconds)
            .context("in range")?;
        ensure!(closed.closed && seconds < closed.paid_seconds, "{closed:?}");
        let spent = before.0 - tenant.own_balance().await?.0;
        ensure!(spent == due.0, "the tenant spent {spent}, {seconds} s are {due}");
        Ok(())
    }

    /// Looks at everything until all show the GPU lost, or well.
    pub(super) async fn watch(&self, lost: bool, served_at_most: u64) -> anyhow::Result<Seen> {
        let stack = self.tenant.stack;
        let begun = Instant::now();
        let mut seen = Seen::default();
        while !seen.all() {
            ensure!(begun.elapsed() < LIMIT, "after {LIMIT:?}: {seen:?}");
            let (node, lease, account, offered, not_sold) = tokio::try_join!(
                gpu_node(stack, NODE),
                async { anyhow::Ok(self.tenant.leases().get(self.name).await?) },
                self.account(),
                offered(stack, HEALTHY_PROVIDER),
                not_sold(stack, HEALTHY_PROVIDER),
            )?;
            let now = begun.elapsed();
            let note = |when: &mut Option<Duration>, so: bool| {
                if so {
                    when.get_or_insert(now);
                }
            };
            note(&mut seen.node, node_shows(&node, &self.gpu, lost));
            note(&mut seen.lease, lease_shows(&lease, lost));
            let out = not_sold
                .get(NODE)
                .is_some_and(|(reason, message)| reason == "GpuLost" && message.contains(&self.gpu));
            note(
                &mut seen.sale,
                if lost {
                    out && offered == 0
                } else {
                    not_sold.is_empty() && offered == 1
                },
            );
            let runs = account.running & 1 != 0;
            note(&mut seen.leg, runs != lost);
            let served = account.legs[0].served_seconds;
            note(&mut seen.credit, !lost || (!runs && served <= served_at_most));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(seen)
    }
}

fn node_shows(node: &GpuNode, gpu: &str, lost: bool) -> bool {
    let Some(status) = &node.status else { return false };
    let health = status.devices.iter().find(|d| d.uuid == gpu).map(|d| d.health);
    if lost {
        find(&status.conditions, "Healthy").is_some_and(|c| c.status == "False" && c.reason == "GpuLost")
            && health == Some(DeviceHealth::Lost)
    } else {
        is_true(&status.conditions, "Healthy") && health == Some(DeviceHealth::Healthy)
    }
}

fn lease_shows(lease: &GpuLease, lost: bool) -> bool {
    let Some(status) = &lease.status else { return false };
    let ready = find(&status.conditions, "Ready");
    status.phase == Phase::Active
        && ready.is_some_and(|c| {
            if lost {
                c.status == "False" && c.reason == "GpuFault" && c.message.contains(NODE)
            } else {
                c.status == "True"
            }
        })
}
