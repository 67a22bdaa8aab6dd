//! Leadership is an optimisation: two operators sure that they lead never pay twice (M2). It saves double work.

use std::time::Duration;

use anyhow::{Context as _, bail};
use kube_lease_manager::LeaseManagerBuilder;
use tokio_util::sync::CancellationToken;

use crate::{cache, settings::CommonArgs};

/// Seconds a leader's lease is valid without renewal; a standby takes over after that.
const LEASE_SECONDS: u64 = 15;
/// Seconds before the end at which it is renewed.
const RENEW_SECONDS: u64 = 5;

/// Leadership; dropping it hands it over.
pub struct Leadership {
    channel: Option<tokio::sync::watch::Receiver<bool>>,
    task: Option<tokio::task::JoinHandle<kube_lease_manager::Result<kube_lease_manager::LeaseManager>>>,
}

/// Waits until this replica leads, or for shutdown (`None`).
pub async fn wait(
    name: &str,
    common: &CommonArgs,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<Leadership>> {
    if common.no_leader_election {
        return Ok(Some(Leadership {
            channel: None,
            task: None,
        }));
    }
    // A client of its own: however many passes wait for their calls, no renewal waits with them.
    let client = cache::client(common.kubeconfig.as_deref()).await?;
    let manager = LeaseManagerBuilder::new(client, name)
        .with_namespace(&common.namespace)
        .with_identity(&common.identity)
        .with_duration(LEASE_SECONDS)
        .with_grace(RENEW_SECONDS)
        .build()
        .await
        .with_context(|| {
            format!(
                "make the leader lease {}/{name}: may this ServiceAccount write leases there?",
                common.namespace
            )
        })?;
    let (mut channel, task) = manager.watch().await;
    loop {
        if *channel.borrow_and_update() {
            tracing::info!(lease = name, identity = common.identity, "leads");
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
    /// Returns when leadership is lost: the process must end, so that nothing of it acts on.
    pub async fn lost(&mut self) -> anyhow::Result<()> {
        let Some(channel) = &mut self.channel else {
            return std::future::pending().await;
        };
        loop {
            channel.changed().await.context("the leader election ended")?;
            if !*channel.borrow_and_update() {
                bail!("leadership was lost: ending, so that the new leader acts alone");
            }
        }
    }

    /// Hands leadership over at once.
    pub async fn release(self) {
        drop(self.channel);
        if let Some(task) = self.task
            && tokio::time::timeout(Duration::from_secs(3), task).await.is_err()
        {
            tracing::warn!("leadership was not released in time; it lapses by itself");
        }
    }
}
