//! Whether a PaymentNetwork says what is true of its chain. What the chain tells is read from the chain: a number of
//! decimals that is wrong by four sells a GPU-hour for a ten-thousandth of its price.

use jiff::Timestamp;
use leasehold_crds::{
    GpuPool, PaymentNetwork,
    lease::Blocker,
    payment::network::{ChainCheck, Finality, NetworkCondition, NetworkReason, PaymentNetworkStatus},
    provider::pool::PoolReason,
    shared::{
        conditions::{ConditionStatus, condition, find, set},
        duration,
    },
};

use crate::{endpoints::Agreement, provider::offer::row::start_within_max, recency::Outdated};

/// Name of the escrow contract, by its EIP-712 domain (EIP-5267).
const ESCROW_NAME: &str = "Leasehold Escrow";

/// What a chain tells of the contracts of a PaymentNetwork.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainFacts {
    /// Name by which the contract at the escrow's address signs; `None` if there is no contract, or one that has no name.
    pub escrow_name: Option<String>,
    /// Decimals of the token; `None` if there is no contract at its address, or one that does not tell them.
    pub decimals: Option<u8>,
    /// Symbol of the token; `None` if it does not tell one as text.
    pub symbol: Option<String>,
}

/// What came of a read of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChainReading {
    /// The contracts were read.
    Facts(ChainFacts),
    /// Only the newest block was read: what was found before is still so.
    Answers,
    /// The endpoint serves the chain with this id, which is not the network's.
    OtherChain(u64),
    /// It could not be read; the text says why.
    Unknown(String),
}

impl ChainReading {
    /// What came of a read whose newest block is recent or outdated, and of the contracts, if they were read. An endpoint that
    /// does not follow the chain says nothing of it.
    #[must_use]
    pub fn of(recent: Result<(), Outdated>, facts: Option<ChainFacts>) -> Self {
        match (recent, facts) {
            (Err(outdated), _) => Self::Unknown(outdated.to_string()),
            (Ok(()), Some(facts)) => Self::Facts(facts),
            (Ok(()), None) => Self::Answers,
        }
    }
}

/// What is served on the PaymentNetworks of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serves {
    /// Leases: a `marketId` is required.
    Market,
    /// The offers of a provider alone.
    Provider,
}

/// Why no lease may begin on the network and nothing may be offered on it; `None` if it was compared with its chain and
/// both agree.
#[must_use]
pub fn refusal(network: &PaymentNetwork) -> Option<(Blocker, String)> {
    let name = network.metadata.name.as_deref().unwrap_or_default();
    match network.status.as_ref().and_then(|s| s.chain_check) {
        Some(ChainCheck::Matches) => None,
        None => Some((
            Blocker::NetworkUnknown,
            format!("the PaymentNetwork {name:?} has not been compared with its chain yet"),
        )),
        Some(ChainCheck::WrongChain | ChainCheck::NoEscrow | ChainCheck::WrongDecimals) => Some((
            Blocker::NetworkNotFound,
            format!("the PaymentNetwork {name:?} does not agree with its chain: see its status"),
        )),
    }
}

/// Why a provider offers nothing of a pool that is paid on that network; `None` if it can be used. A lease that must start
/// before its payment is final would never start.
#[must_use]
pub fn unusable(network: Option<&PaymentNetwork>, pool: &GpuPool) -> Option<(PoolReason, String)> {
    let name = &pool.spec.network;
    let Some(network) = network.filter(|network| refusal(network).is_none()) else {
        let message = format!("there is no usable PaymentNetwork {name:?} in this cluster");
        return Some((PoolReason::NoPaymentNetwork, message));
    };
    let within = start_within_max(pool);
    let measured = network.status.as_ref().and_then(|s| s.finality_seconds);
    let message = match (network.spec.provision_at, measured) {
        (Finality::Latest, _) => return None,
        (Finality::Safe | Finality::Finalized, None) => {
            format!("it is not known yet how late payments on {name:?} are final (spec.provisionAt)")
        }
        (Finality::Safe | Finality::Finalized, Some(seconds)) => {
            let seconds = u64::try_from(seconds).unwrap_or_default();
            if seconds <= within {
                return None;
            }
            format!(
                "payments on {name:?} are final after {}, and leases of the pool start within {}: raise spec.maxStartWithin, or lower spec.provisionAt of the PaymentNetwork",
                duration::text(seconds),
                duration::text(within)
            )
        }
    };
    Some((PoolReason::FinalityTooSlow, message))
}

/// Whether the contracts and the finality of payments are to be read at once: nothing begins on the network until they are
/// known, or its spec has changed since they were read.
#[must_use]
pub fn is_unread(network: &PaymentNetwork) -> bool {
    let generation = network.metadata.generation.unwrap_or_default();
    let known = network.status.as_ref();
    known
        .filter(|s| s.observed_generation == generation)
        .is_none_or(|s| {
            let waits_for_finality = network.spec.provision_at != Finality::Latest;
            s.chain_check != Some(ChainCheck::Matches) || waits_for_finality && s.finality_seconds.is_none()
        })
}

/// The largest lag of finality of about an hour: what was measured now, or what was found before, less a sixteenth of it
/// each time. Rounded up to a quarter of a minute, so that the status seldom changes.
fn slowest(before: Option<i64>, measured: u64) -> i64 {
    let measured = i64::try_from(measured.next_multiple_of(15)).unwrap_or(i64::MAX);
    let before = before.unwrap_or_default();
    measured.max((before - before / 16) / 15 * 15)
}

/// The status of a network after a read. `finality` is by how many seconds the newest block with the finality `provisionAt`
/// was behind the newest one, if that was read. `agreement` is that of its RPC endpoints.
#[must_use]
pub fn status(
    network: &PaymentNetwork,
    reading: &ChainReading,
    finality: Option<u64>,
    agreement: &Agreement,
    serves: Serves,
    now: Timestamp,
) -> PaymentNetworkStatus {
    let mut status = reachable(network, reading, serves, now);
    let known = network.status.as_ref();
    let known = known.filter(|s| s.observed_generation == status.observed_generation);
    let before = known.and_then(|s| s.finality_seconds);
    status.finality_seconds = match (network.spec.provision_at, finality) {
        (Finality::Latest, _) => None,
        (Finality::Safe | Finality::Finalized, None) => before,
        (Finality::Safe | Finality::Finalized, Some(measured)) => Some(slowest(before, measured)),
    };
    let (value, reason, message) = match agreement {
        Agreement::Single => {
            status
                .conditions
                .retain(|c| c.type_ != NetworkCondition::EndpointsAgree.as_str());
            return status;
        }
        Agreement::Agree => (ConditionStatus::True, NetworkReason::Agree, String::new()),
        Agreement::Disagree(what) => (
            ConditionStatus::False,
            NetworkReason::Disagree,
            format!(
                "{what}; nothing is closed or released on the word of one of them: find out which of them is wrong, and replace it"
            ),
        ),
        Agreement::OneFails(which) => (
            ConditionStatus::Unknown,
            NetworkReason::OneFails,
            format!(
                "{which}; what ends an account waits until both endpoints answer, or one of them is removed from the spec"
            ),
        ),
    };
    let generation = status.observed_generation;
    let next = condition(
        NetworkCondition::EndpointsAgree,
        value,
        reason,
        message,
        generation,
    );
    set(&mut status.conditions, next, now);
    status
}

/// The status with the condition `Reachable`.
fn reachable(
    network: &PaymentNetwork,
    reading: &ChainReading,
    serves: Serves,
    now: Timestamp,
) -> PaymentNetworkStatus {
    let generation = network.metadata.generation.unwrap_or_default();
    let mut status = network.status.clone().unwrap_or_default();
    status.observed_generation = generation;
    let found = compare(network, reading);
    if let Some((check, _)) = &found {
        status.chain_check = Some(*check);
    }
    let (value, reason, message) = match (reading, found) {
        (ChainReading::Unknown(why), _) => {
            (ConditionStatus::Unknown, NetworkReason::Unreachable, why.clone())
        }
        (_, Some((check, message))) if check != ChainCheck::Matches => {
            (ConditionStatus::False, reason(check), message)
        }
        _ if serves == Serves::Market && network.spec.market_id.is_none() => (
            ConditionStatus::False,
            NetworkReason::NoMarketId,
            "set spec.marketId: leases are not served on this network without it".into(),
        ),
        (_, Some((_, message))) => (ConditionStatus::True, NetworkReason::Reachable, message),
        // The condition still reports an outage, or a missing `marketId`, that is over.
        (_, None) if status.chain_check == Some(ChainCheck::Matches) && !is_reachable(&status) => {
            (ConditionStatus::True, NetworkReason::Reachable, String::new())
        }
        (_, None) => return status,
    };
    let next = condition(NetworkCondition::Reachable, value, reason, message, generation);
    set(&mut status.conditions, next, now);
    status
}

fn is_reachable(status: &PaymentNetworkStatus) -> bool {
    find(&status.conditions, NetworkCondition::Reachable)
        .is_some_and(|c| c.status == ConditionStatus::True.as_str())
}

const fn reason(check: ChainCheck) -> NetworkReason {
    match check {
        ChainCheck::Matches => NetworkReason::Reachable,
        ChainCheck::WrongChain => NetworkReason::WrongChain,
        ChainCheck::NoEscrow => NetworkReason::NoEscrow,
        ChainCheck::WrongDecimals => NetworkReason::WrongDecimals,
    }
}

/// Compares the spec with what was read; `None` if nothing was read that could differ.
fn compare(network: &PaymentNetwork, reading: &ChainReading) -> Option<(ChainCheck, String)> {
    let spec = &network.spec;
    let facts = match reading {
        ChainReading::Facts(facts) => facts,
        ChainReading::OtherChain(found) => {
            let message = format!(
                "the RPC endpoint serves chain {found}, but spec.chainId is {}: correct the endpoint, or create another PaymentNetwork",
                spec.chain_id
            );
            return Some((ChainCheck::WrongChain, message));
        }
        ChainReading::Answers | ChainReading::Unknown(_) => return None,
    };
    if facts.escrow_name.as_deref() != Some(ESCROW_NAME) {
        let message = format!(
            "there is no Leasehold escrow contract at {} on chain {}: create another PaymentNetwork",
            spec.escrow, spec.chain_id
        );
        return Some((ChainCheck::NoEscrow, message));
    }
    let token = &spec.token;
    let Some(decimals) = facts.decimals else {
        let message = format!(
            "the contract at {} on chain {} does not tell its decimals: is it an ERC-20 token?",
            token.address, spec.chain_id
        );
        return Some((ChainCheck::WrongDecimals, message));
    };
    if i64::from(decimals) != token.decimals {
        let message = format!(
            "spec.token.decimals is {}, but the token has {decimals}: create another PaymentNetwork",
            token.decimals
        );
        return Some((ChainCheck::WrongDecimals, message));
    }
    // A symbol is for display, and bridged tokens have others than people write.
    let message = match &facts.symbol {
        Some(symbol) if *symbol != token.symbol => {
            let symbol: String = symbol.chars().take(32).collect();
            format!("the symbol of the token is {symbol:?} on the chain")
        }
        _ => String::new(),
    };
    Some((ChainCheck::Matches, message))
}

#[cfg(test)]
mod tests {
    use leasehold_crds::{
        payment::network::{PaymentNetworkSpec, Token},
        provider::pool::GpuPoolSpec,
    };

    use super::*;

    fn network(check: Option<ChainCheck>) -> PaymentNetwork {
        let spec = PaymentNetworkSpec {
            chain_id: 8453,
            token: Token {
                address: "0x1".into(),
                symbol: "USDC".into(),
                decimals: 6,
            },
            market_id: Some("0x2".into()),
            ..PaymentNetworkSpec::default()
        };
        let mut network = PaymentNetwork::new("base", spec);
        network.status = Some(PaymentNetworkStatus {
            chain_check: check,
            ..PaymentNetworkStatus::default()
        });
        network
    }

    fn facts() -> ChainFacts {
        ChainFacts {
            escrow_name: Some("Leasehold Escrow".into()),
            decimals: Some(6),
            symbol: Some("USDC".into()),
        }
    }

    /// Check, status of the condition, reason and message after a read.
    fn read(network: &PaymentNetwork, reading: ChainReading) -> (Option<ChainCheck>, String, String) {
        let status = status(
            network,
            &reading,
            None,
            &Agreement::Single,
            Serves::Market,
            Timestamp::UNIX_EPOCH,
        );
        let condition = find(&status.conditions, NetworkCondition::Reachable);
        let (value, message) = condition.map_or_else(Default::default, |c| {
            (format!("{} {}", c.status, c.reason), c.message.clone())
        });
        (status.chain_check, value, message)
    }

    #[test]
    fn what_the_chain_tells_is_compared_with_the_spec() {
        let new = network(None);
        let of = |facts: ChainFacts| {
            let (check, value, message) = read(&new, ChainReading::Facts(facts));
            (check.unwrap(), value, message)
        };
        assert_eq!(
            of(facts()),
            (ChainCheck::Matches, "True Reachable".into(), String::new())
        );
        let wrong = of(ChainFacts {
            decimals: Some(18),
            ..facts()
        });
        assert_eq!(
            (wrong.0, wrong.1.as_str()),
            (ChainCheck::WrongDecimals, "False WrongDecimals")
        );
        assert!(wrong.2.contains("is 6, but the token has 18"), "{}", wrong.2);
        let silent = of(ChainFacts {
            decimals: None,
            ..facts()
        });
        assert_eq!(silent.0, ChainCheck::WrongDecimals);
        for name in [None, Some("Another Escrow".to_owned())] {
            let none = of(ChainFacts {
                escrow_name: name,
                ..facts()
            });
            assert_eq!(
                (none.0, none.1.as_str()),
                (ChainCheck::NoEscrow, "False NoEscrow")
            );
        }
        let bridged = of(ChainFacts {
            symbol: Some("USDC.e".into()),
            ..facts()
        });
        assert_eq!(bridged.0, ChainCheck::Matches);
        assert!(bridged.2.contains("USDC.e"), "{}", bridged.2);
        let (check, value, _) = read(&new, ChainReading::OtherChain(1));
        assert_eq!(
            (check, value.as_str()),
            (Some(ChainCheck::WrongChain), "False WrongChain")
        );
    }

    #[test]
    fn an_outage_changes_nothing_that_was_found() {
        for check in [None, Some(ChainCheck::Matches), Some(ChainCheck::WrongDecimals)] {
            let (after, value, message) = read(&network(check), ChainReading::Unknown("no answer".into()));
            assert_eq!((after, value.as_str()), (check, "Unknown Unreachable"));
            assert_eq!(message, "no answer");
            let (after, ..) = read(&network(check), ChainReading::Answers);
            assert_eq!(after, check);
        }
    }

    #[test]
    fn the_first_block_after_an_outage_makes_a_network_reachable() {
        let mut network = network(Some(ChainCheck::Matches));
        let outage = ChainReading::Unknown("no answer".into());
        network.status = Some(status(
            &network,
            &outage,
            None,
            &Agreement::Single,
            Serves::Market,
            Timestamp::UNIX_EPOCH,
        ));
        let (_, value, message) = read(&network, ChainReading::Answers);
        assert_eq!((value.as_str(), message.as_str()), ("True Reachable", ""));
    }

    #[test]
    fn the_contracts_are_compared_only_as_a_recent_block_has_them() {
        let of = |recent| ChainReading::of(recent, Some(facts()));
        assert_eq!(of(Ok(())), ChainReading::Facts(facts()));
        let (check, value, _) = read(&network(None), of(Err(Outdated::Stopped(300))));
        assert_eq!((check, value.as_str()), (None, "Unknown Unreachable"));
        assert_eq!(ChainReading::of(Ok(()), None), ChainReading::Answers);
    }

    #[test]
    fn nothing_begins_on_a_network_that_does_not_agree_with_its_chain() {
        assert_eq!(refusal(&network(Some(ChainCheck::Matches))), None);
        assert_eq!(refusal(&network(None)).unwrap().0, Blocker::NetworkUnknown);
        for check in [
            ChainCheck::WrongChain,
            ChainCheck::NoEscrow,
            ChainCheck::WrongDecimals,
        ] {
            assert_eq!(
                refusal(&network(Some(check))).unwrap().0,
                Blocker::NetworkNotFound
            );
        }
    }

    #[test]
    fn endpoints_that_disagree_are_told() {
        let network = network(Some(ChainCheck::Matches));
        let of = |agreement: Agreement| {
            let answers = ChainReading::Answers;
            let status = status(
                &network,
                &answers,
                None,
                &agreement,
                Serves::Market,
                Timestamp::UNIX_EPOCH,
            );
            let found = find(&status.conditions, NetworkCondition::EndpointsAgree);
            found.map(|c| format!("{} {}", c.status, c.reason))
        };
        let told = |text: &str| Some(text.to_owned());
        assert_eq!(of(Agreement::Single), None);
        assert_eq!(of(Agreement::Agree), told("True Agree"));
        assert_eq!(of(Agreement::Disagree("x".into())), told("False Disagree"));
        assert_eq!(of(Agreement::OneFails("x".into())), told("Unknown OneFails"));
    }

    fn measured(network: &PaymentNetwork, lag: Option<u64>) -> PaymentNetworkStatus {
        let answers = ChainReading::Answers;
        let single = Agreement::Single;
        status(
            network,
            &answers,
            lag,
            &single,
            Serves::Provider,
            Timestamp::UNIX_EPOCH,
        )
    }

    #[test]
    fn nothing_is_offered_where_payments_are_final_after_leases_must_start() {
        let mut pool = GpuPool::new("h100", GpuPoolSpec::default());
        pool.spec.max_start_within = Some("15m".into());
        let mut network = network(Some(ChainCheck::Matches));
        let reason = |network: &PaymentNetwork| unusable(Some(network), &pool).map(|(reason, _)| reason);
        assert_eq!(reason(&network), None, "payments count in the newest block");
        network.spec.provision_at = Finality::Finalized;
        assert_eq!(
            reason(&network),
            Some(PoolReason::FinalityTooSlow),
            "not measured yet"
        );
        for (lag, expected) in [(768, None), (900, None), (901, Some(PoolReason::FinalityTooSlow))] {
            network.status = Some(PaymentNetworkStatus {
                chain_check: Some(ChainCheck::Matches),
                ..PaymentNetworkStatus::default()
            });
            network.status = Some(measured(&network, Some(lag)));
            assert_eq!(reason(&network), expected, "{lag}");
        }
        assert_eq!(unusable(None, &pool).unwrap().0, PoolReason::NoPaymentNetwork);
    }

    #[test]
    fn the_slowest_finality_of_an_hour_counts() {
        let mut network = network(Some(ChainCheck::Matches));
        network.spec.provision_at = Finality::Finalized;
        network.status = Some(measured(&network, Some(1_140)));
        for lag in [Some(780), None, Some(800)] {
            network.status = Some(measured(&network, lag));
            let kept = network.status.as_ref().unwrap().finality_seconds.unwrap();
            assert!((990..=1_140).contains(&kept), "{lag:?}: {kept}");
        }
        for _ in 0..12 {
            network.status = Some(measured(&network, Some(780)));
        }
        assert_eq!(network.status.as_ref().unwrap().finality_seconds, Some(780));
        // Another finality is measured anew.
        network.metadata.generation = Some(2);
        assert_eq!(measured(&network, None).finality_seconds, None);
    }

    #[test]
    fn what_a_network_waits_for_is_read_at_once() {
        assert!(is_unread(&network(None)), "it was never compared with its chain");
        let mut network = network(Some(ChainCheck::Matches));
        network.metadata.generation = Some(1);
        assert!(is_unread(&network), "its spec was never read");
        network.status = Some(measured(&network, None));
        assert!(!is_unread(&network));
        network.spec.provision_at = Finality::Finalized;
        network.metadata.generation = Some(2);
        assert!(is_unread(&network), "its spec has changed");
        network.status = Some(measured(&network, None));
        assert!(is_unread(&network), "its finality is not known");
        network.status = Some(measured(&network, Some(780)));
        assert!(!is_unread(&network));
    }

    #[test]
    fn a_market_needs_a_market_id() {
        let mut network = network(None);
        network.spec.market_id = None;
        let reading = ChainReading::Facts(facts());
        let of = |serves| {
            status(
                &network,
                &reading,
                None,
                &Agreement::Single,
                serves,
                Timestamp::UNIX_EPOCH,
            )
        };
        assert_eq!(of(Serves::Market).conditions[0].reason, "NoMarketId");
        assert_eq!(of(Serves::Provider).conditions[0].reason, "Reachable");
    }
}
