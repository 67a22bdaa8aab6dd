//! Checks the money of a story: compares each participant's change of balance with what block times imply. Pure
//! except for reading the balances.

use anyhow::{bail, ensure};
use leasehold_chain::EvmEscrow;
use leasehold_crds::payment::money::{Rate, TokenAmount};
use leasehold_planner::{
    escrow::{Address, Terms},
    ports::Payments as _,
};

use super::Transaction;
use crate::stack::{DECIMALS, Role, Stack, address, payee};

/// Everyone who can hold tokens of the stack.
#[derive(Clone, Debug)]
pub struct Participants {
    /// Name and address of each.
    pub rows: Vec<(String, Address)>,
}

/// Token balances, in the order of [`Participants`].
pub type Balances = Vec<TokenAmount>;

impl Participants {
    /// The participants of a stack: tenant, payees, escrow, closer and controllers.
    pub fn of(stack: &Stack) -> anyhow::Result<Self> {
        let mut rows = vec![("tenant".to_owned(), address(Role::Tenant)?)];
        for (index, provider) in stack.spec.providers.iter().enumerate() {
            rows.push((format!("payee of {}", provider.name), payee(index)));
        }
        rows.push(("escrow contract".to_owned(), stack.money.escrow));
        rows.push(("market's closer".to_owned(), address(Role::Closer)?));
        for (index, provider) in stack.spec.providers.iter().enumerate() {
            rows.push((
                format!("controller of {}", provider.name),
                address(Role::Controller(index))?,
            ));
        }
        Ok(Self { rows })
    }

    /// Reads all balances.
    pub async fn read(&self, payments: &EvmEscrow) -> anyhow::Result<Balances> {
        let mut balances = Vec::new();
        for (_, address) in &self.rows {
            balances.push(payments.balances(*address).await?.token);
        }
        Ok(balances)
    }

    /// Name of an address.
    #[must_use]
    pub fn name(&self, address: Address) -> String {
        let known = self.rows.iter().find(|(_, a)| *a == address);
        known.map_or_else(|| short(&address.to_string()), |(name, _)| name.clone())
    }

    fn gain(&self, of: Address, before: &Balances, after: &Balances) -> i128 {
        let at = self.rows.iter().position(|(_, a)| *a == of);
        at.map_or(0, |i| signed(after[i]) - signed(before[i]))
    }
}

/// Shortens an address to `0x1234…cdef`.
#[must_use]
pub fn short(hex: &str) -> String {
    match (hex.get(..6), hex.get(hex.len().saturating_sub(4)..)) {
        (Some(head), Some(tail)) if hex.len() > 12 => format!("{head}…{tail}"),
        _ => hex.to_owned(),
    }
}

fn signed(amount: TokenAmount) -> i128 {
    i128::try_from(amount.0).unwrap_or(i128::MAX)
}

/// Formats a change in whole tokens with its sign, such as `-0.012334`; empty for no change.
#[must_use]
pub fn change_text(units: i128) -> String {
    let text = TokenAmount(units.unsigned_abs()).to_tokens(DECIMALS);
    let text = padded(&text);
    match units.signum() {
        0 => String::new(),
        1 => format!("+{text}"),
        _ => format!("-{text}"),
    }
}

/// Formats an amount in whole tokens with all decimals, so that columns align at the decimal point.
#[must_use]
pub fn amount_text(amount: TokenAmount) -> String {
    padded(&amount.to_tokens(DECIMALS))
}

fn padded(text: &str) -> String {
    let (whole, digits) = text.split_once('.').unwrap_or((text, ""));
    format!("{whole}.{digits:0<width$}", width = DECIMALS as usize)
}

/// What a leg served and earned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// Its payee.
    pub payee: Address,
    /// Seconds between the blocks that started and ended it.
    pub seconds: u64,
    /// Price per second.
    pub rate: Rate,
    /// Price of these seconds, rounded down.
    pub earned: TokenAmount,
}

/// Computes the served seconds of each leg from the blocks of the transactions that started and ended it, and their
/// price.
pub fn served(terms: &Terms, transactions: &[Transaction]) -> anyhow::Result<Vec<Served>> {
    let serve = |leg: &leasehold_planner::escrow::Leg| {
        let (mut since, mut seconds) = (None, 0);
        for transaction in transactions.iter().filter(|t| t.succeeded) {
            let own = transaction.from == leg.controller;
            match transaction.call.as_str() {
                "start" if own => since = Some(transaction.time),
                "pause" | "endLeg" if own => seconds += since.take().map_or(0, |s| transaction.time - s),
                "close" => seconds += since.take().map_or(0, |s| transaction.time - s),
                "creditTo" => bail!("a leg was credited, which does not happen in these stories"),
                _ => {}
            }
        }
        ensure!(
            since.is_none(),
            "the leg of payee {} was never ended on chain",
            leg.payee
        );
        let earned = leg.rate.earned_floor(seconds);
        Ok(Served {
            payee: leg.payee,
            seconds,
            rate: leg.rate,
            earned: earned.ok_or_else(|| anyhow::anyhow!("the price of {seconds} s is out of range"))?,
        })
    };
    terms.legs.iter().map(serve).collect()
}

/// Checks each participant's change of balance to the unit: each payee gains the price of its seconds, the tenant
/// loses their sum, and all others change by nothing.
pub fn settle(
    participants: &Participants,
    payer: Address,
    served: &[Served],
    before: &Balances,
    after: &Balances,
) -> anyhow::Result<()> {
    let cost: i128 = served.iter().map(|s| signed(s.earned)).sum();
    for (name, address) in &participants.rows {
        let earned: i128 = served
            .iter()
            .filter(|s| s.payee == *address)
            .map(|s| signed(s.earned))
            .sum();
        let right = if *address == payer { -cost } else { earned };
        let gained = participants.gain(*address, before, after);
        ensure!(
            gained == right,
            "the money does not add up: {name} changed by {gained} base units, but block times imply {right}"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use leasehold_planner::escrow::{Hash, Leg};

    use super::*;

    fn at(n: u8) -> Address {
        Address([n; 20])
    }

    fn transaction(from: u8, call: &str, time: u64) -> Transaction {
        Transaction {
            hash: Hash::default(),
            block: time,
            time,
            from: at(from),
            call: call.into(),
            gas: 0,
            succeeded: true,
        }
    }

    fn terms() -> Terms {
        let leg = |payee, controller| Leg {
            payee: at(payee),
            controller: at(controller),
            // One and a half base units per second.
            rate: Rate(1_500_000_000_000),
        };
        Terms {
            payer: at(1),
            market: at(2),
            token: at(3),
            closer: at(4),
            salt: Hash::default(),
            start_by: 0,
            notice_seconds: 0,
            pause_for: 0,
            legs: vec![leg(10, 20), leg(11, 21)],
        }
    }

    fn story() -> Vec<Served> {
        let transactions = [
            transaction(20, "start", 100),
            transaction(21, "start", 102),
            transaction(4, "close", 105),
        ];
        served(&terms(), &transactions).unwrap()
    }

    fn participants() -> Participants {
        let rows = [("tenant", 1), ("one", 10), ("two", 11), ("escrow", 5)];
        Participants {
            rows: rows.map(|(name, n)| (name.to_owned(), at(n))).into(),
        }
    }

    fn balances(units: [u128; 4]) -> Balances {
        units.map(TokenAmount).into()
    }

    #[test]
    fn each_leg_is_paid_for_its_own_seconds_rounded_down() {
        let legs = story();
        assert_eq!((legs[0].seconds, legs[0].earned.0), (5, 7));
        assert_eq!((legs[1].seconds, legs[1].earned.0), (3, 4));
    }

    #[test]
    fn a_reverted_start_starts_nothing() {
        let reverted = Transaction {
            succeeded: false,
            ..transaction(20, "start", 100)
        };
        assert_eq!(
            served(&terms(), &[reverted, transaction(4, "close", 105)]).unwrap()[0].seconds,
            0
        );
    }

    #[test]
    fn one_unit_too_much_is_found_wherever_it_is() {
        let before = balances([100, 0, 0, 0]);
        let right = [89, 7, 4, 0];
        settle(&participants(), at(1), &story(), &before, &balances(right)).unwrap();
        for wallet in 0..4 {
            let mut wrong = right;
            wrong[wallet] += 1;
            let error = settle(&participants(), at(1), &story(), &before, &balances(wrong)).unwrap_err();
            assert!(error.to_string().contains("does not add up"), "{wallet}: {error}");
        }
    }

    #[test]
    fn amounts_line_up_at_the_point() {
        assert_eq!(amount_text(TokenAmount(1_000_000_000)), "1000.000000");
        assert_eq!(amount_text(TokenAmount(12_300)), "0.012300");
        assert_eq!(change_text(-1), "-0.000001");
        assert_eq!(change_text(1_500_000), "+1.500000");
        assert_eq!(change_text(0), "");
    }
}
