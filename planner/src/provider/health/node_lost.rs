//! Nodes that are lost entirely: machine, kubelet and agent at once. No agent is left to report a fault, so that two
//! timeouts decide: of the kubelet's heartbeats, as the cluster's node controller reports it, and of the agent's.
//!
//! While the API server is down, no heartbeat arrives, and afterwards all of them are late together. Therefore the
//! timeouts count only once the API server has answered for at least as long as they last.

use jiff::{SignedDuration, Timestamp};

use super::NodeReport;

/// Reports must be missing for this long to count: an agent and a kubelet each report every 10 s.
pub const LIVENESS_TIMEOUT_SECONDS: i64 = 60;
/// Two answers that are further apart than this may have an outage between them.
const GAP_SECONDS: i64 = 45;

/// What the cluster says of a node's kubelet: the `Ready` condition of the Node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KubeletReport {
    /// Ready.
    Ready,
    /// Not ready, or not heard of.
    NotReady {
        /// Since when (`lastTransitionTime`).
        since: Timestamp,
        /// When the kubelet reported last (`lastHeartbeatTime`).
        heard_at: Option<Timestamp>,
    },
    /// There is no such Node.
    Gone,
}

/// The time since which an API server has answered every read, without a gap that could hide an outage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answers(Option<(Timestamp, Timestamp)>);

impl Answers {
    /// Takes note of one answer, or of none.
    #[must_use]
    pub fn after(self, answered: bool, now: Timestamp) -> Self {
        let unbroken = |(_, last): &(Timestamp, Timestamp)| (0..=GAP_SECONDS).contains(&seconds(*last, now));
        let since = self.0.filter(unbroken).map_or(now, |(since, _)| since);
        Self(answered.then_some((since, now)))
    }

    /// The first of the answers.
    #[must_use]
    pub fn since(self) -> Option<Timestamp> {
        self.0.map(|(since, _)| since)
    }
}

/// Whether a node is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// The agent or the kubelet reports.
    No,
    /// Neither reports; the node is lost at that time unless one of them reports again.
    At(Timestamp),
    /// There are no reports of it since that time.
    Since(Timestamp),
}

impl NodeReport<'_> {
    /// Whether its agent has reported lately.
    #[must_use]
    pub fn alive(&self, now: Timestamp) -> bool {
        is_live(self.heard_at, now)
    }

    /// Whether the kubelet is not ready, so that everything known of the node must be read again from the API server,
    /// not from a cache, before it is assessed.
    #[must_use]
    pub fn is_suspect(&self) -> bool {
        self.kubelet != KubeletReport::Ready
    }

    /// Whether the node is lost by what the API server shows now, which has answered since `reachable_since`.
    pub(super) fn lost(&self, reachable_since: Option<Timestamp>, now: Timestamp) -> Lost {
        let not_ready_since = match self.kubelet {
            KubeletReport::Ready => return Lost::No,
            KubeletReport::NotReady { since, .. } => Some(since),
            KubeletReport::Gone => None,
        };
        let silences = [not_ready_since, self.heard_at, reachable_since];
        let latest = silences.into_iter().flatten().max().unwrap_or(now);
        let due = later(latest, LIVENESS_TIMEOUT_SECONDS + 1);
        match reachable_since {
            Some(_) if now >= due => Lost::Since(self.last_heard().unwrap_or(now).min(now)),
            Some(_) => Lost::At(due),
            None => Lost::At(later(now, LIVENESS_TIMEOUT_SECONDS + 1)),
        }
    }

    /// When it was last reported as ready. Reports of a kubelet that the node is not ready do not count.
    fn last_heard(&self) -> Option<Timestamp> {
        let kubelet = match self.kubelet {
            KubeletReport::NotReady { since, heard_at } => heard_at.map(|at| at.min(since)),
            KubeletReport::Ready | KubeletReport::Gone => None,
        };
        self.heard_at.max(kubelet)
    }
}

/// Whether a Lease was renewed lately.
#[must_use]
pub fn is_live(heard_at: Option<Timestamp>, now: Timestamp) -> bool {
    heard_at.is_some_and(|at| seconds(at, now) <= LIVENESS_TIMEOUT_SECONDS)
}

fn seconds(from: Timestamp, to: Timestamp) -> i64 {
    to.as_second() - from.as_second()
}

fn later(time: Timestamp, seconds: i64) -> Timestamp {
    time.checked_add(SignedDuration::from_secs(seconds))
        .unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// Both reported last at second 1000; the cluster marked the node as not ready 40 s later.
    fn dead() -> NodeReport<'static> {
        NodeReport {
            node: "n",
            heard_at: Some(at(1000)),
            status: None,
            kubelet: KubeletReport::NotReady {
                since: at(1040),
                heard_at: Some(at(995)),
            },
        }
    }

    #[test]
    fn two_silences_of_a_minute_make_a_lost_node_since_it_was_last_heard_of() {
        let reachable = Some(at(1040));
        assert_eq!(dead().lost(reachable, at(1100)), Lost::At(at(1101)));
        assert_eq!(dead().lost(reachable, at(1101)), Lost::Since(at(1000)));
        let kubelet_later = NodeReport {
            heard_at: Some(at(900)),
            ..dead()
        };
        assert_eq!(
            kubelet_later.lost(reachable, at(1101)),
            Lost::Since(at(995)),
            "whichever was heard of last"
        );
    }

    #[test]
    fn one_silence_makes_none() {
        let now = at(5000);
        let agent_reports = NodeReport {
            heard_at: Some(at(4990)),
            ..dead()
        };
        assert_eq!(agent_reports.lost(Some(at(0)), now), Lost::At(at(5051)));
        let kubelet_reports = NodeReport {
            kubelet: KubeletReport::Ready,
            ..dead()
        };
        assert_eq!(kubelet_reports.lost(Some(at(0)), now), Lost::No);
    }

    #[test]
    fn a_kubelet_that_goes_on_saying_that_it_is_not_ready_vouches_for_nothing() {
        let broken = NodeReport {
            kubelet: KubeletReport::NotReady {
                since: at(1040),
                heard_at: Some(at(1095)),
            },
            ..dead()
        };
        assert_eq!(broken.lost(Some(at(0)), at(1101)), Lost::Since(at(1040)));
    }

    #[test]
    fn a_node_that_is_deleted_is_lost_when_its_agent_is_silent_too() {
        let gone = NodeReport {
            kubelet: KubeletReport::Gone,
            ..dead()
        };
        assert_eq!(gone.lost(Some(at(1000)), at(1060)), Lost::At(at(1061)));
        assert_eq!(gone.lost(Some(at(1000)), at(1061)), Lost::Since(at(1000)));
        let nobody = NodeReport {
            heard_at: None,
            ..gone
        };
        assert_eq!(
            nobody.lost(Some(at(1000)), at(1061)),
            Lost::Since(at(1061)),
            "nothing is given back for a time that nobody knows of"
        );
    }

    #[test]
    fn silences_of_an_api_server_that_was_away_itself_do_not_count() {
        let mut answers = Answers::default();
        let now = at(2000);
        assert_eq!(
            dead().lost(answers.since(), now),
            Lost::At(at(2061)),
            "it does not answer"
        );
        answers = answers.after(true, now);
        assert_eq!(
            dead().lost(answers.since(), now),
            Lost::At(at(2061)),
            "it is just back"
        );
        answers = answers.after(true, at(2030)).after(true, at(2060));
        assert_eq!(dead().lost(answers.since(), at(2060)), Lost::At(at(2061)));
        assert_eq!(dead().lost(answers.since(), at(2061)), Lost::Since(at(1000)));
        for gap in [answers.after(false, at(2070)), answers] {
            let again = gap.after(true, at(2110));
            assert_eq!(
                again.since(),
                Some(at(2110)),
                "it was away between two answers, or may have been"
            );
        }
        assert_eq!(
            answers.after(true, at(2050)).since(),
            Some(at(2050)),
            "a clock that was set back proves nothing"
        );
    }
}
