//! Two independent RPC endpoints of one chain, of which one may be down, stuck or lying. Reads and transactions go on with
//! one of them. What ends something that no later reconcile could bring back is believed only if both say so of the same
//! block: otherwise the account is unknown, as in an outage of the chain, with the same bounds.

use jiff::Timestamp;

use crate::{
    escrow::{AccountAt, AccountRead, Hash},
    observed::Observed,
    ports::{Head, PaymentError},
    recency::{LAG_SECONDS_MAX, Outdated, Recency},
};

/// How long a disagreement is reported after it was last seen.
const DISAGREEMENT_SECONDS: i64 = 600;

/// One of the RPC endpoints of a PaymentNetwork.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Endpoint {
    /// That of `rpcUrl` or `rpcSecretName`.
    First,
    /// That of `secondRpcUrl` or `secondRpcSecretName`.
    Second,
}

impl Endpoint {
    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }

    /// What it is called in a message.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::First => "the first RPC endpoint",
            Self::Second => "the second RPC endpoint",
        }
    }
}

/// What one process has received from the endpoints of one PaymentNetwork so far.
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    first: Answers,
    second: Option<Answers>,
    disagreement: Option<(Timestamp, String)>,
}

/// What one endpoint has answered.
#[derive(Clone, Debug, Default)]
struct Answers {
    recency: Recency,
    /// Why its last answer about the newest block or an account was none.
    failure: Option<String>,
}

/// Whether two endpoints agree, for a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// There is only one.
    Single,
    /// Both answer, and nothing that they said of one block differed lately.
    Agree,
    /// They said different things of one block; the text says what.
    Disagree(String),
    /// One does not answer; the text says which and why.
    OneFails(String),
}

/// What the other endpoint says of an answer of the leading one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Confirmation {
    /// The same of the same block.
    Same,
    /// Something else of the same block; the text says so.
    Differs(String),
    /// Nothing; the text says why.
    Missing(String),
}

/// What decisions may use of an answer of the leading endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Belief {
    /// Everything: it counts as two reads.
    Confirmed,
    /// What ends nothing: the leading endpoint is read once more.
    Alone,
    /// Nothing: the account is unknown, and why.
    Unknown(String),
}

impl Endpoints {
    /// Of a network that names two endpoints.
    #[must_use]
    pub fn two() -> Self {
        Self {
            second: Some(Answers::default()),
            ..Self::default()
        }
    }

    /// The endpoint for reads and transactions: the first one, unless its last answer was none and that of the second one
    /// was not.
    #[must_use]
    pub fn leading(&self) -> Endpoint {
        match &self.second {
            Some(second) if self.first.failure.is_some() && second.failure.is_none() => Endpoint::Second,
            Some(_) | None => Endpoint::First,
        }
    }

    /// The endpoint that confirms what the leading one says, where there are two.
    #[must_use]
    pub fn confirming(&self) -> Option<Endpoint> {
        self.second.as_ref().map(|_| self.leading().other())
    }

    fn answers(&mut self, from: Endpoint) -> &mut Answers {
        match (from, &mut self.second) {
            (Endpoint::Second, Some(second)) => second,
            (Endpoint::First | Endpoint::Second, _) => &mut self.first,
        }
    }

    /// Takes an answer about an account, as [`Recency::account`] does.
    pub fn account(
        &mut self,
        from: Endpoint,
        (id, answer): (Hash, Result<AccountAt, PaymentError>),
        max_age: u64,
        now: Timestamp,
    ) -> Observed<AccountAt> {
        let answers = self.answers(from);
        let observed = answers.recency.account(id, answer, max_age, now);
        answers.failure = why(&observed);
        observed
    }

    /// Takes an answer about the newest block, as [`Recency::head`] does.
    pub fn head(
        &mut self,
        from: Endpoint,
        answer: Result<Head, PaymentError>,
        max_age: u64,
        now: Timestamp,
    ) -> Observed<Head> {
        let answers = self.answers(from);
        let observed = answers.recency.head(answer, max_age, now);
        answers.failure = why(&observed);
        observed
    }

    /// Whether an answer from that block is recent.
    ///
    /// # Errors
    /// Why it is not.
    pub fn accept(
        &mut self,
        from: Endpoint,
        block: Head,
        max_age: u64,
        now: Timestamp,
    ) -> Result<(), Outdated> {
        let answers = self.answers(from);
        let accepted = answers.recency.accept(block, max_age, now);
        answers.failure = accepted.as_ref().err().map(ToString::to_string);
        accepted
    }

    /// Compares an answer of the leading endpoint with what the other one says of the same block, and stores a
    /// disagreement. `newest` is the newest block of the other one.
    pub fn confirm(
        &mut self,
        leading: &AccountAt,
        newest: &Observed<Head>,
        other: Result<AccountAt, PaymentError>,
        now: Timestamp,
    ) -> Confirmation {
        let confirmation = compare(leading, newest, other);
        if let Confirmation::Differs(what) = &confirmation {
            self.disagreement = Some((now, what.clone()));
        }
        confirmation
    }

    /// Stores that the endpoints said different things of the network.
    pub fn disagree(&mut self, what: String, now: Timestamp) {
        self.disagreement = Some((now, what));
    }

    /// Whether they agree.
    #[must_use]
    pub fn agreement(&self, now: Timestamp) -> Agreement {
        let Some(second) = &self.second else {
            return Agreement::Single;
        };
        if let Some((at, what)) = &self.disagreement
            && now.as_second() - at.as_second() < DISAGREEMENT_SECONDS
        {
            return Agreement::Disagree(what.clone());
        }
        let ends = [(Endpoint::First, &self.first), (Endpoint::Second, second)];
        let failing = ends
            .into_iter()
            .find_map(|(end, answers)| Some((end, answers.failure.as_ref()?)));
        failing.map_or(Agreement::Agree, |(end, why)| {
            Agreement::OneFails(format!("{}: {why}", end.name()))
        })
    }
}

fn why<T>(observed: &Observed<T>) -> Option<String> {
    match observed {
        Observed::Known(_) => None,
        Observed::Unknown(why) => Some(why.clone()),
    }
}

fn compare(
    leading: &AccountAt,
    newest: &Observed<Head>,
    other: Result<AccountAt, PaymentError>,
) -> Confirmation {
    let number = leading.block.number;
    match newest {
        Observed::Unknown(why) => return Confirmation::Missing(why.clone()),
        Observed::Known(newest) if newest.time > leading.block.time.saturating_add(LAG_SECONDS_MAX) => {
            let behind = newest.time - leading.block.time;
            return Confirmation::Missing(format!(
                "its block {number} is {behind} s older than the newest one of the other endpoint"
            ));
        }
        Observed::Known(_) => {}
    }
    let other = match other {
        Ok(other) => other,
        Err(error) => return Confirmation::Missing(error.to_string()),
    };
    if other.block.hash != leading.block.hash {
        return Confirmation::Missing(format!(
            "it was asked for block {number} and answered from another"
        ));
    }
    let time = |at: &AccountAt| at.present().map(|account| account.block_time);
    match (time(leading), time(&other)) {
        _ if leading.read == other.read => Confirmation::Same,
        (Some(one), Some(another)) if one != another => {
            Confirmation::Missing(format!("the endpoints compute block {number} at different times"))
        }
        _ => Confirmation::Differs(format!(
            "the RPC endpoints disagree about an account in block {number}: one says it is {}, the other {}",
            name(&leading.read),
            name(&other.read)
        )),
    }
}

fn name(read: &AccountRead) -> &'static str {
    match read {
        AccountRead::Absent => "absent",
        AccountRead::Mismatch => "another",
        AccountRead::Present(account) if account.closed => "closed",
        AccountRead::Present(account) if account.exhausted_at != 0 => "spent",
        AccountRead::Present(account) if account.started_at == 0 => "not started",
        AccountRead::Present(_) => "open",
    }
}

/// Whether something could end because of this answer. Until `open_by`, an absent account may still come.
fn ends(at: &AccountAt, start_by: u64, open_by: u64) -> bool {
    match &at.read {
        AccountRead::Absent => at.block.time > open_by,
        AccountRead::Mismatch => true,
        AccountRead::Present(a) => {
            a.closed || a.exhausted_at != 0 || (a.started_at == 0 && a.block_time > start_by)
        }
    }
}

/// What decisions may use of an answer of the leading endpoint about an account, which can start until `start_by` and be
/// opened until `open_by` (Unix seconds).
#[must_use]
pub fn belief(leading: &AccountAt, confirmation: &Confirmation, (start_by, open_by): (u64, u64)) -> Belief {
    match confirmation {
        Confirmation::Same => Belief::Confirmed,
        Confirmation::Differs(_) | Confirmation::Missing(_) if !ends(leading, start_by, open_by) => {
            Belief::Alone
        }
        Confirmation::Differs(what) => Belief::Unknown(what.clone()),
        Confirmation::Missing(why) => Belief::Unknown(format!(
            "{} is not confirmed by the other RPC endpoint: {why}",
            match &leading.read {
                AccountRead::Absent => "that there is no account",
                AccountRead::Mismatch => "that the account is another",
                AccountRead::Present(_) => "the end of the account",
            }
        )),
    }
}

/// What both endpoints say; unknown where they differ.
#[must_use]
pub fn agreed<T: PartialEq>(one: Observed<T>, other: Observed<T>) -> Observed<T> {
    match (one, other) {
        (Observed::Known(one), Observed::Known(other)) if one == other => Observed::Known(one),
        (Observed::Known(_), Observed::Known(_)) => {
            Observed::Unknown("the RPC endpoints disagree about the accounts that were opened".into())
        }
        (Observed::Unknown(why), _) | (_, Observed::Unknown(why)) => Observed::Unknown(why),
    }
}

#[cfg(test)]
mod tests;
