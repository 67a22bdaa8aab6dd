//! The stories: what a tenant does and sees, step by step, and the resulting transactions. The demo prints them, and
//! the end-to-end tests check the same run.

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

/// The environment of a story.
pub struct Stage<'a> {
    /// The stack.
    pub stack: &'a Stack,
    /// The tenant.
    pub tenant: Tenant<'a>,
    /// Where output goes.
    pub console: &'a Console,
    /// The chain, read independently of the product.
    pub ledger: Ledger,
    /// Everyone who can hold tokens.
    pub participants: Participants,
}

impl<'a> Stage<'a> {
    /// Creates the tenant's namespace and wallet.
    pub fn set(stack: &'a Stack, namespace: &str, console: &'a Console) -> anyhow::Result<Self> {
        Ok(Self {
            stack,
            tenant: Tenant::new(stack, namespace)?,
            console,
            ledger: Ledger::open(&stack.money)?,
            participants: Participants::of(stack)?,
        })
    }

    /// All current balances.
    pub async fn balances(&self) -> anyhow::Result<Balances> {
        self.participants.read(&self.stack.payments).await
    }
}

/// Result of a lease, according to the chain.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The last state of the lease.
    pub lease: GpuLease,
    /// Each phase and the time at which it was seen, since the lease was applied.
    pub phases: Vec<(Phase, Duration)>,
    /// Terms of its account.
    pub terms: Terms,
    /// The account at the end.
    pub account: Account,
    /// All transactions on the chain from before the lease until its end.
    pub transactions: Vec<Transaction>,
    /// What each leg served, according to the times of blocks.
    pub served: Vec<Served>,
    /// Balances before the lease.
    pub before: Balances,
    /// Balances after the lease.
    pub after: Balances,
    /// When each provider's GPUs were offered again.
    pub returned: Vec<Returned>,
}

impl Outcome {
    /// Number of transactions that an address sent, and their gas.
    #[must_use]
    pub fn sent_by(&self, from: Address) -> (usize, u64) {
        let sent = self.transactions.iter().filter(|t| t.from == from);
        sent.fold((0, 0), |(count, gas), t| (count + 1, gas + t.gas))
    }

    /// Checks the money of a story, to the unit.
    pub fn check_money(&self, participants: &Participants) -> anyhow::Result<()> {
        ensure!(self.account.closed, "the account is still open on chain");
        for (leg, (served, state)) in self.served.iter().zip(&self.account.legs).enumerate() {
            ensure!(
                served.seconds == state.served_seconds,
                "leg {leg} served {} s according to block times, but {} s according to the escrow",
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

    /// Checks that all GPUs were offered again within 5 seconds after their pods ended.
    pub fn check_returned(&self) -> anyhow::Result<()> {
        for returned in &self.returned {
            ensure!(
                returned.after_pod() <= Duration::from_secs(5),
                "the GPUs of {} were offered again {:.1} s after their pod's end; the limit is 5 s",
                returned.provider,
                returned.after_pod().as_secs_f64()
            );
        }
        Ok(())
    }
}

/// Terms and account of a lease that has an account.
async fn account_of(tenant: &Tenant<'_>, lease: &GpuLease) -> anyhow::Result<(Terms, Account)> {
    tenant
        .account(lease)
        .await
        .context("read the lease's account on chain")
}
