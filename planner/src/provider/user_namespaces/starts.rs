//! What a pod of a lease that does not start tells about user namespaces. It can be wrong: a tenant chooses the image and the
//! command, and a volume can be late. So it only asks for the next probe.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, Pod};

use crate::provider::workload::{SANDBOX_READY, has_run, main_container};

/// A sandbox is ready after seconds; its volumes may take longer.
const SANDBOX_SECONDS: i64 = 60;
/// Parts of messages of runtimes and of their hooks, in lower case.
const WORDS: [&str; 6] = [
    "user namespace",
    "userns",
    "idmap",
    "uid_map",
    "gid_map",
    "nvidia-container",
];

/// Why a pod in a user namespace has not started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartTrouble {
    /// Since when, if it may still start by itself.
    pub since: Option<Timestamp>,
    /// Why, for a person.
    pub words: String,
}

/// Why a pod in a user namespace has not started; `None` if it has, or if the reason has nothing to do with user namespaces.
#[must_use]
pub fn start_trouble(pod: &Pod) -> Option<StartTrouble> {
    let spec = pod.spec.as_ref()?;
    let is_in_one = spec.host_users == Some(false) && spec.node_name.is_some();
    if !is_in_one || pod.metadata.deletion_timestamp.is_some() || has_run(pod) {
        return None;
    }
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let main = main_container(pod);
    let states = main.into_iter().flat_map(|c| [&c.state, &c.last_state]).flatten();
    if let Some(said) = states
        .filter_map(message)
        .find(|said| is_of_user_namespaces(said))
    {
        return Some(StartTrouble {
            since: None,
            words: format!("pod {name} of a lease: {said}"),
        });
    }
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let sandbox = conditions
        .iter()
        .find(|c| c.type_ == SANDBOX_READY && c.status == "False")?;
    Some(StartTrouble {
        since: Some(sandbox.last_transition_time.as_ref()?.0),
        words: format!("the sandbox of pod {name} of a lease was not ready after {SANDBOX_SECONDS} s"),
    })
}

fn message(state: &ContainerState) -> Option<&str> {
    let waiting = state.waiting.as_ref().and_then(|w| w.message.as_deref());
    waiting.or_else(|| state.terminated.as_ref()?.message.as_deref())
}

fn is_of_user_namespaces(said: &str) -> bool {
    let said = said.to_lowercase();
    WORDS.iter().any(|word| said.contains(word))
}

/// A pod of a lease that did not start on a node with user namespaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedStart {
    /// Its node.
    pub node: String,
    /// Why, for a person.
    pub words: String,
}

/// UIDs of the pods whose failed start was reported: each is reported once.
#[derive(Clone, Debug, Default)]
pub struct ReportedStarts(BTreeSet<String>);

impl ReportedStarts {
    /// The starts that have failed since the last call. `pods` are all pods that have not started, with UID and node.
    pub fn of<'a>(
        &mut self,
        pods: impl IntoIterator<Item = (&'a str, &'a str, &'a StartTrouble)>,
        now: Timestamp,
    ) -> Vec<FailedStart> {
        let is_due = |t: &StartTrouble| {
            let since = t.since.map_or(0, |at| at.as_second());
            now.as_second() - since >= SANDBOX_SECONDS
        };
        let due: Vec<_> = pods
            .into_iter()
            .filter(|(_, _, trouble)| is_due(trouble))
            .collect();
        let told = std::mem::take(&mut self.0);
        self.0 = due.iter().map(|(uid, ..)| (*uid).to_owned()).collect();
        due.into_iter()
            .filter(|(uid, ..)| !told.contains(*uid))
            .map(|(_, node, trouble)| FailedStart {
                node: node.to_owned(),
                words: trouble.words.clone(),
            })
            .collect()
    }
}
