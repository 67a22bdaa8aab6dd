//! Leader election is an optimisation that avoids duplicate work: two operators that both believe they lead never pay
//! twice (M2).

use std::time::Duration;

use anyhow::{Context as _, bail};
use kube_lease_manager::LeaseManagerBuilder;
use tokio_util::sync::CancellationToken;

use crate::{
    cache::{self, Deadlines},
    process::ProcessArgs,
};

/// Seconds for which a leader's Lease is valid without renewal; a standby replica takes over after that.
const LEASE_SECONDS: u64 = 15;
/// Seconds before its expiry at which it is renewed.
const RENEW_SECONDS: u64 = 5;

/// Leadership of this replica; dropping it releases it.
pub struct Leadership {
    channel: Option<tokio::sync::watch::Receiver<bool>>,
    task: Option<tokio::task::JoinHandle<kube_lease_manager::Result<kube_lease_manager::LeaseManager>>>,
}

/// Waits until this replica leads; `None` when shutdown came first.
pub async fn wait(
    name: &str,
    args: &ProcessArgs,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<Leadership>> {
    if args.no_leader_election {
        return Ok(Some(Leadership {
            channel: None,
            task: None,
        }));
    }
    // Its own client: renewals must not queue behind the requests of reconciles.
    let client = cache::client(args.kubeconfig.as_deref(), Deadlines::RENEWAL).await?;
    let manager = LeaseManagerBuilder::new(client, name)
        .with_namespace(&args.namespace)
        .with_identity(&args.identity)
        .with_duration(LEASE_SECONDS)
        .with_grace(RENEW_SECONDS)
        .build()
        .await
        .with_context(|| {
            format!(
                "make the leader lease {}/{name}: may this ServiceAccount write leases there?",
                args.namespace
            )
        })?;
    let (mut channel, task) = manager.watch().await;
    loop {
        if *channel.borrow_and_update() {
            tracing::info!(lease = name, identity = args.identity, "started leading");
            return Ok(Some(Leadership {
                channel: Some(channel),
                task: Some(task),
            }));
        }
        tokio::select! {
            () = shutdown.cancelled() => {
                drop(channel);
                let _ = tokio::time::timeout(Duration::from_secs(3), task).await;
                return Ok(None);
            }
            changed = channel.changed() => changed.context("the leader election ended")?,
        }
    }
}

impl Leadership {
    /// Returns when leadership is lost. The process must end then, so that none of its work continues.
    pub async fn lost(&mut self) -> anyhow::Result<()> {
        let Some(channel) = &mut self.channel else {
            return std::future::pending().await;
        };
        loop {
            channel.changed().await.context("the leader election ended")?;
            if !*channel.borrow_and_update() {
                bail!("leadership lost: exiting, so that only the new leader acts");
            }
        }
    }

    /// Releases leadership immediately.
    pub async fn release(self) {
        drop(self.channel);
        if let Some(task) = self.task
            && tokio::time::timeout(Duration::from_secs(3), task).await.is_err()
        {
            tracing::warn!("leadership was not released in time; it expires by itself");
        }
    }
}
