//! Whether a provider is alive: its Lease is seen to be renewed, by the clock of the market. What the clock of the provider
//! says counts for nothing: with one that is a minute slow it would be silent for ever, and with one that is fast it would be
//! alive long after its end.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::provider::health::is_live;

/// The last renewal of each provider.
#[derive(Clone, Debug, Default)]
pub struct Liveness(BTreeMap<String, Renewal>);

#[derive(Clone, Copy, Debug)]
struct Renewal {
    /// By the clock of the provider.
    renewed_at: Timestamp,
    /// When it was first seen, by the own clock. `None` if it was there when the process started and may be old.
    seen_at: Option<Timestamp>,
}

impl Liveness {
    /// Takes the time that a provider's Lease has now, and returns whether the provider is alive.
    pub fn observe(&mut self, provider: &str, renewed_at: Option<Timestamp>, now: Timestamp) -> bool {
        let Some(renewed_at) = renewed_at else {
            self.0.remove(provider);
            return false;
        };
        let before = self.0.get(provider).copied();
        let seen_at = match before {
            Some(before) if before.renewed_at == renewed_at => before.seen_at,
            Some(_) => Some(now),
            // A process that starts believes what both clocks agree on, so that it need not wait for the next renewal.
            None => (is_live(Some(renewed_at), now) && renewed_at <= now).then_some(renewed_at),
        };
        self.0
            .insert(provider.to_owned(), Renewal { renewed_at, seen_at });
        is_live(seen_at, now)
    }

    /// Drops the providers of which this is not true.
    pub fn retain(&mut self, exists: impl Fn(&str) -> bool) {
        self.0.retain(|provider, _| exists(provider));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    #[test]
    fn a_provider_is_alive_while_its_lease_is_renewed_whatever_its_clock_says() {
        for offset in [-3_600, -61, 0, 61, 3_600] {
            let mut liveness = Liveness::default();
            let mut observe =
                |renewed: i64, now: i64| liveness.observe("p", Some(at(renewed + offset)), at(now));
            assert_eq!(observe(0, 0), offset == 0, "{offset}");
            for second in 10..100 {
                assert!(observe(second / 10 * 10, second), "{offset}");
            }
            assert!(observe(90, 150), "{offset}");
            assert!(!observe(90, 151), "{offset}: no renewal for more than a minute");
            assert!(observe(160, 160), "{offset}: it is back");
        }
    }

    #[test]
    fn a_provider_without_a_lease_is_not_alive() {
        let mut liveness = Liveness::default();
        assert!(liveness.observe("p", Some(at(0)), at(0)));
        assert!(!liveness.observe("p", None, at(1)));
        assert!(liveness.observe("p", Some(at(0)), at(2)));
        liveness.retain(|provider| provider != "p");
        assert!(
            !liveness.observe("p", Some(at(0)), at(61)),
            "it is read for the first time"
        );
    }
}
