//! Every right of every account, by asking the API server about all that it serves.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use futures::{StreamExt as _, stream};
use kube::Client;
use serde_json::json;

use crate::installation::{HOME, Installation};
use crate::requests::{read, send};

const DOCUMENT: &str = "docs/operate/permissions.md";
const VERBS: &[&str] = &[
    "get",
    "list",
    "watch",
    "create",
    "update",
    "patch",
    "delete",
    "deletecollection",
];
/// Namespaces that are asked about beside all of them together.
const PLACES: [&str; 5] = [
    HOME,
    "lease-checks-leasehold",
    "provider-rhine-west",
    "provider-elbe",
    "kube-system",
];
/// Asked beside what discovery lists: verbs that hand out power.
const POWERS: &[(&str, &str, &str)] = &[
    ("rbac.authorization.k8s.io", "clusterroles", "bind"),
    ("rbac.authorization.k8s.io", "clusterroles", "escalate"),
    ("rbac.authorization.k8s.io", "roles", "bind"),
    ("rbac.authorization.k8s.io", "roles", "escalate"),
    ("", "users", "impersonate"),
    ("", "groups", "impersonate"),
    ("", "serviceaccounts", "impersonate"),
    ("certificates.k8s.io", "signers", "approve"),
    ("certificates.k8s.io", "signers", "sign"),
];

/// What one account may do, as lines of a table: by namespace where it is less than everywhere.
pub(crate) async fn rights(who: &Client, resources: &[Resource]) -> Vec<(String, String, String)> {
    let mut questions = Vec::new();
    for resource in resources {
        questions.push((resource, ""));
        if resource.namespaced {
            questions.extend(PLACES.map(|n| (resource, n)));
        }
    }
    let answers: Vec<_> =
        stream::iter(questions)
            .map(|(resource, namespace)| async move {
                (resource, namespace, verbs(who, resource, namespace).await)
            })
            .buffered(16)
            .collect()
            .await;
    let mut everywhere: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (resource, _, verbs) in answers.iter().filter(|(_, namespace, _)| namespace.is_empty()) {
        everywhere.entry(resource.to_string()).or_default().extend(verbs);
    }
    answers
        .into_iter()
        .filter_map(|(resource, namespace, mut verbs)| {
            let name = resource.to_string();
            if !namespace.is_empty() {
                verbs.retain(|verb| !everywhere[&name].contains(verb));
            }
            let place = match (namespace, resource.namespaced) {
                ("", true) => "every namespace".to_owned(),
                ("", false) => "cluster".to_owned(),
                (namespace, _) => format!("`{namespace}`"),
            };
            (!verbs.is_empty()).then(|| (name, place, verbs.join(", ")))
        })
        .collect()
}

pub(crate) struct Resource {
    group: String,
    name: String,
    subresource: String,
    namespaced: bool,
    verbs: Vec<&'static str>,
}

impl std::fmt::Display for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sub = if self.subresource.is_empty() {
            String::new()
        } else {
            format!("/{}", self.subresource)
        };
        let group = if self.group.is_empty() {
            String::new()
        } else {
            format!(".{}", self.group)
        };
        write!(f, "{}{group}{sub}", self.name)
    }
}

pub(crate) async fn verbs(who: &Client, resource: &Resource, namespace: &str) -> Vec<&'static str> {
    let mut may = Vec::new();
    for &verb in &resource.verbs {
        let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {
            "resourceAttributes": {"group": resource.group, "resource": resource.name, "subresource": resource.subresource,
                "verb": verb, "namespace": namespace}}});
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let answer = send(who, "POST", path, Some(&review), "application/json")
            .await
            .unwrap();
        if answer["status"]["allowed"] == true {
            may.push(verb);
        }
    }
    may
}

/// Every resource and subresource that the server serves, and the powers.
pub(crate) async fn served(admin: &Client) -> Vec<Resource> {
    let mut versions = vec![("/api/v1".to_owned(), String::new())];
    let groups = read(admin, "/apis").await.unwrap();
    for group in groups["groups"].as_array().unwrap() {
        let version = group["preferredVersion"]["groupVersion"].as_str().unwrap();
        versions.push((
            format!("/apis/{version}"),
            group["name"].as_str().unwrap().to_owned(),
        ));
    }
    let mut resources = Vec::new();
    for (path, group) in versions {
        for resource in read(admin, &path).await.unwrap()["resources"].as_array().unwrap() {
            let name = resource["name"].as_str().unwrap();
            let (name, subresource) = name.split_once('/').unwrap_or((name, ""));
            resources.push(Resource {
                group: group.clone(),
                name: name.to_owned(),
                subresource: subresource.to_owned(),
                namespaced: resource["namespaced"] == true,
                verbs: VERBS.to_vec(),
            });
        }
    }
    for &(group, name, verb) in POWERS {
        resources.push(Resource {
            group: group.to_owned(),
            name: name.to_owned(),
            subresource: String::new(),
            namespaced: false,
            verbs: vec![verb],
        });
    }
    // Discovery lists kinds in the order they came to be served.
    resources.sort_by_key(|resource| (resource.group.clone(), resource.to_string(), resource.verbs.len()));
    resources
}

pub(crate) async fn the_documented_table_is_the_whole_of_it(it: &Installation) {
    let resources = served(&it.admin).await;
    assert!(
        resources.len() > 100,
        "only {} resources were found",
        resources.len()
    );
    // Permissions of every authenticated account are not listed.
    let nobody = it.cluster.token_for("default", "default").await.unwrap();
    let nobody = rights(&it.cluster.client_with_token(&nobody).await.unwrap(), &resources).await;
    let mut text = String::from(
        "# Permissions\n\n\
         Generated and checked by `cargo test -p leasehold-tasks --test permissions` with the tokens of an installed chart. \
         The test requests every verb on every resource and subresource that the API server serves. Requests that are not \
         listed here were denied. The chart is installed as release `leasehold` in `leasehold-system`, with the market and \
         the provider `rhine-west` in one cluster, and the provider `elbe` in another cluster. Permissions for single \
         objects by name do not appear in the tables; they are listed below.\n\n\
         Admission policies restrict these permissions further:\n\n\
         - **Agent**: writes only the GpuNode and the Lease of the node for which its token was issued, and never changes the \
         `spec` of a GpuNode.\n\
         - **Provider operator**: writes namespaced objects only in namespaces `lease-*` with the label \
         `leasehold.dev/provider=<its name>`; creates, changes and deletes only such namespaces, and only under the Pod Security Standard `baseline` or `restricted`; writes only its own \
         GpuReservations. Nobody creates pods in these namespaces that can be root outside a user namespace.\n\n\
         Permissions by name: the market operator can get the Secrets with RPC URLs in its own namespace, and each wallet that \
         the Role of a tenant names; each operator can renew its own leader Lease; a provider can get and patch its own \
         GpuProvider; the provider operator can bind the ClusterRole `leasehold-tenant-access` and no other; the gateway lets a \
         connector connect as the provider for which it can create `gpuproviders/tunnel`, and the connector of another cluster can \
         make tokens for its own account at the market.\n",
    );
    for (title, who) in [
        ("Market operator", &it.market),
        (
            "Provider operator, in a cluster that is also the market",
            &it.provider,
        ),
        ("Provider `elbe` in this market", &it.guest),
        ("Gateway", &it.gateway),
        ("Connector, in a cluster that is also the market", &it.connector),
        ("Connector of `elbe` in this market", &it.guest_connector),
        ("Agent", &it.agent),
    ] {
        writeln!(
            text,
            "\n## {title}\n\n| Resource | Where | Verbs |\n|---|---|---|"
        )
        .unwrap();
        for (resource, place, verbs) in rights(who, &resources).await {
            if !nobody
                .iter()
                .any(|known| *known == (resource.clone(), place.clone(), verbs.clone()))
            {
                writeln!(text, "| `{resource}` | {place} | {verbs} |").unwrap();
            }
        }
    }
    let document = leasehold_tasks::root().join(DOCUMENT);
    if std::env::var_os("LEASEHOLD_WRITE").is_some() {
        std::fs::write(&document, &text).unwrap();
    }
    let documented = std::fs::read_to_string(&document).unwrap_or_default();
    let pairs = documented.lines().zip(text.lines()).enumerate();
    if let Some((line, (has, is))) = pairs.into_iter().find(|(_, (has, is))| has != is) {
        panic!(
            "{DOCUMENT}:{}: has {has:?}, but the cluster permits {is:?}; run the test with LEASEHOLD_WRITE=1 to update it",
            line + 1
        );
    }
    assert_eq!(
        documented.lines().count(),
        text.lines().count(),
        "{DOCUMENT} is stale; run the test with LEASEHOLD_WRITE=1 to update it"
    );
}
