//! Money: nothing is created or lost (M1), and every deposit was intended (M2).

use std::collections::{BTreeMap, BTreeSet};

use leasehold_crds::payment::money::RATE_SCALE;
use leasehold_planner::escrow::{Account, AccountRead, Address, Hash, Terms};

use crate::{Sim, sim::address_of};

impl Sim {
    /// All who may hold tokens.
    fn holders(&self) -> BTreeSet<Address> {
        let payees = self.sites.iter().map(|s| s.identity.payee);
        let tenants = self.tenants.balances().into_iter().map(|(who, _)| who);
        tenants.chain(payees).chain([address_of("closer")]).collect()
    }

    /// M1 and M2, at each block.
    pub(super) fn check_money(&mut self) {
        let block = self.chain.newest();
        let (token, until, time) = (self.currency.token, block.head.number, block.head.time);
        let accounts: BTreeMap<Hash, (&Terms, Account)> = self
            .chain
            .opened(until)
            .filter_map(|o| match block.machine.read(&o.terms, time) {
                AccountRead::Present(account) => Some((o.terms.id(), (&o.terms, account))),
                AccountRead::Absent | AccountRead::Mismatch => None,
            })
            .collect();
        let holders = self.holders();
        let outside: u128 = holders
            .iter()
            .map(|who| block.machine.balance(token, *who).0)
            .sum();
        let held = block.machine.held(token).0;
        let credited: u128 = holders
            .iter()
            .map(|who| block.machine.credit(token, *who).0)
            .sum();
        let minted = self.invariants.minted.0;
        let mut wrong = Vec::new();
        if outside + held != minted {
            wrong.push(format!(
                "M1: {outside} outside and {held} in the escrow, but {minted} were minted"
            ));
        }
        let mut owed_in_all = credited;
        let mut open: BTreeMap<&String, u32> = BTreeMap::new();
        for (id, (terms, account)) in &accounts {
            let owed: u128 = account.legs.iter().map(|l| l.owed.0).sum();
            let withdrawn: u128 = account.legs.iter().map(|l| l.withdrawn.0).sum();
            let scaled = |i: usize| terms.legs[i].rate.0 * u128::from(account.legs[i].served_seconds);
            let earned: u128 = (0..account.legs.len()).map(scaled).sum();
            if account.closed {
                owed_in_all += owed;
            } else {
                owed_in_all += account.deposited.0 - withdrawn;
                if let Some(uid) = self.invariants.lease_of_account.get(&id.to_string()) {
                    *open.entry(uid).or_default() += 1;
                }
                if earned + account.balance_scaled > account.deposited.0 * RATE_SCALE {
                    wrong.push(format!("M1: {id} owes more than it holds"));
                }
            }
            let text = id.to_string();
            let most = self.invariants.intents.get(&text).copied().unwrap_or(0);
            let given = self
                .invariants
                .deposited_by_others
                .get(&text)
                .copied()
                .unwrap_or(0);
            if account.deposited.0 > most.max(given) {
                wrong.push(format!(
                    "M2: {id} holds {}, but intents allow {most}",
                    account.deposited
                ));
            }
        }
        if owed_in_all != held {
            wrong.push(format!(
                "M1: accounts add up to {owed_in_all}, but the escrow holds {held}"
            ));
        }
        for (uid, count) in open {
            if count > 1 {
                wrong.push(format!("M2: {count} accounts are open for {uid}"));
            }
        }
        for what in wrong {
            self.invariants.violated(|| what);
        }
    }
}
