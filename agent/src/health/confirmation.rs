//! Observations that count once a second reading shows them.

/// Consecutive readings that confirm an observation. A process can outlive its pod briefly, and the kubelet can list a
/// new pod slightly late.
const CONFIRMATIONS: u32 = 2;

/// Observations of one kind seen so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Confirmation {
    /// Descriptions such as `process 42 of the pod team-a/train-0 on GPU-…`.
    seen: Vec<String>,
    readings: u32,
}

impl Confirmation {
    #[must_use]
    pub(crate) fn after(self, seen: Vec<String>) -> Self {
        Self {
            readings: if seen.is_empty() {
                0
            } else {
                self.readings.saturating_add(1)
            },
            seen,
        }
    }

    pub(crate) fn confirmed(&self) -> &[String] {
        if self.readings >= CONFIRMATIONS {
            &self.seen
        } else {
            &[]
        }
    }

    pub(crate) fn is_unconfirmed(&self) -> bool {
        self.readings > 0 && self.readings < CONFIRMATIONS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_observation_needs_two_readings() {
        let once = Confirmation::default().after(vec!["x".to_owned()]);
        assert!(once.is_unconfirmed() && once.confirmed().is_empty());
        let twice = once.clone().after(vec!["x".to_owned()]);
        assert_eq!(twice.confirmed(), ["x"]);
        let again = once.after(Vec::new()).after(vec!["x".to_owned()]);
        assert!(again.confirmed().is_empty());
        assert!(twice.after(Vec::new()).confirmed().is_empty());
    }
}
