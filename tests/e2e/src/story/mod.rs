//! The stories: what a tenant does and sees, step by step, with what it moved on the chain. The demo tells them, the
//! end-to-end tests check the same run.

mod follow;
mod gpux;
mod job;
mod ledger;
mod money;
mod views;

use std::time::Duration;

use anyhow::{Context as _, ensure};
use leasehold_crds::{GpuLease, lease::Phase};
use leasehold_planner::escrow::{Account, Address, Terms};

pub use gpux::{GPUX, Gpux, gpux};
pub use job::{JOB, Job, job};
pub use ledger::{Ledger, Transaction};
pub use money::{Balances, Participants, Served, amount_text, change_text, settle, short};
pub use views::{Returned, grouped};

use crate::{Console, Role, Stack, Tenant, address};

/// Where a story happens, and who listens.
pub struct Stage<'a> {
    /// The stack.
    pub stack: &'a Stack,
    /// The tenant.
    pub tenant: Tenant<'a>,
    /// Who is told.
    pub console: &'a Console,
    /// The chain, read apart from the product.
    pub ledger: Ledger,
    /// Everybody's purse.
    pub participants: Participants,
}

impl<'a> Stage<'a> {
    /// Makes the tenant's namespace and wallet.
    pub fn set(stack: &'a Stack, namespace: &str, console: &'a Console) -> anyhow::Result<Self> {
        Ok(Self {
            stack,
            tenant: Tenant::new(stack, namespace)?,
            console,
            ledger: Ledger::open(&stack.money)?,
            participants: Participants::of(stack)?,
        })
    }

    /// Every balance now.
    pub async fn balances(&self) -> anyhow::Result<Balances> {
        self.participants.read(&self.stack.payments).await
    }
}

/// What a lease came to, by the chain.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The lease as it was last seen.
    pub lease: GpuLease,
    /// Each phase and when it was seen, after the lease was applied.
    pub phases: Vec<(Phase, Duration)>,
    /// Terms of its account.
    pub terms: Terms,
    /// The account at the end.
    pub account: Account,
    /// Every transaction on the chain from before the lease to its end.
    pub transactions: Vec<Transaction>,
    /// What each leg served, by the times of blocks.
    pub served: Vec<Served>,
    /// Balances before and after.
    pub before: Balances,
    /// See `before`.
    pub after: Balances,
    /// When each provider's GPUs were for sale again.
    pub returned: Vec<Returned>,
}

impl Outcome {
    /// How many transactions an address sent, and their gas.
    #[must_use]
    pub fn sent_by(&self, from: Address) -> (usize, u64) {
        let sent = self.transactions.iter().filter(|t| t.from == from);
        sent.fold((0, 0), |(count, gas), t| (count + 1, gas + t.gas))
    }

    /// What must be true of every story's money, to the unit.
    pub fn check_money(&self, participants: &Participants) -> anyhow::Result<()> {
        ensure!(self.account.closed, "the account is still open on chain");
        for (leg, (served, state)) in self.served.iter().zip(&self.account.legs).enumerate() {
            ensure!(
                served.seconds == state.served_seconds,
                "leg {leg} served {} s by the times of blocks, the escrow says {} s",
                served.seconds,
                state.served_seconds
            );
        }
        settle(
            participants,
            address(Role::Tenant)?,
            &self.served,
            &self.before,
            &self.after,
        )
    }

    /// What must be true of every story's GPUs: all are for sale again within 5 seconds of their pod's end.
    pub fn check_returned(&self) -> anyhow::Result<()> {
        for returned in &self.returned {
            ensure!(
                returned.after_pod() <= Duration::from_secs(5),
                "the GPUs of {} were for sale again {:.1} s after their pod's end, 5 s are promised",
                returned.provider,
                returned.after_pod().as_secs_f64()
            );
        }
        Ok(())
    }
}

/// Account and terms of a lease that has one.
async fn account_of(tenant: &Tenant<'_>, lease: &GpuLease) -> anyhow::Result<(Terms, Account)> {
    tenant
        .account(lease)
        .await
        .context("read the lease's account on chain")
}
