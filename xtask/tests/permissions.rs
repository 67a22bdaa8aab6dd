//! Who may write what, tried with the real tokens of an installed chart against a real API server: RBAC by asking
//! about every verb, resource and subresource that is served, and what RBAC can't confine by doing it.
//!
//! The first is compared with docs/operate/permissions.md, which it writes when LEASEHOLD_WRITE is set: whoever
//! grants more, says so in the documents.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking too")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use http::{Request, header};
use kube::Client;
use leasehold_testcluster::{Cluster, ClusterSpec, KwokNode, Stderr, Unavailable};
use serde_json::{Value, json};

const HOME: &str = "leasehold-system";
const PROVIDER: &str = "rhine-west";
const DOCUMENT: &str = "docs/operate/permissions.md";
const PATIENCE: Duration = Duration::from_secs(30);
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

/// An installed chart, and clients that are who their tokens say.
struct Installation {
    cluster: Cluster,
    admin: Client,
    market: Client,
    provider: Client,
    /// A provider of another cluster, by the account made for it here.
    guest: Client,
    agent: Client,
    /// The agent's account, with a token that names no node.
    adrift: Client,
}

impl Installation {
    async fn new(name: &str) -> Self {
        let nodes = ["node-a", "node-b"].map(|name| KwokNode::named(name).capacity("cpu", "1"));
        let spec = ClusterSpec::new(name, 0).with_kwok_nodes(nodes);
        let cluster = Cluster::up(spec, &Stderr::default()).await.unwrap();
        let address = format!("0x{}", "1".repeat(40));
        let values = json!({
            // Nobody runs: the tokens are ours to use.
            "market": {"replicas": 0, "providers": [{"name": "elbe", "payee": address, "controller": address}]},
            "provider": {"replicas": 0, "name": PROVIDER, "payee": address, "controller": address},
            "agent": {"nodeSelector": {"no": "such"}},
            "rpcSecretNames": ["base-rpc"],
        });
        let folder = cluster.directory().join("values.json");
        std::fs::write(&folder, values.to_string()).unwrap();
        let mut helm = cluster.helm();
        helm.args(["install", "leasehold"])
            .arg(xtask::root().join("charts/leasehold"))
            .args(["--namespace", HOME, "--create-namespace", "--values"])
            .arg(&folder);
        succeed(&mut helm);
        let token = |account: &'static str| {
            let cluster = &cluster;
            async move {
                cluster
                    .client_with_token(&cluster.token_for(HOME, account).await.unwrap())
                    .await
                    .unwrap()
            }
        };
        let guest = cluster.token_for("provider-elbe", "provider").await.unwrap();
        let agent = cluster
            .token_on_node(HOME, "leasehold-agent", "node-a")
            .await
            .unwrap();
        let it = Self {
            admin: cluster.client(),
            market: token("leasehold-market").await,
            provider: token("leasehold-provider").await,
            guest: cluster.client_with_token(&guest).await.unwrap(),
            agent: cluster.client_with_token(&agent).await.unwrap(),
            adrift: token("leasehold-agent").await,
            cluster,
        };
        it.policies_hold().await;
        it
    }

    /// Admission policies work some moments after they were made.
    async fn policies_hold(&self) {
        let deadline = Instant::now() + PATIENCE;
        for (who, object) in [
            (&self.adrift, gpu_node("node-a")),
            (&self.provider, namespace("evil", PROVIDER)),
            (&self.provider, reservation("probe", "elbe")),
        ] {
            loop {
                let answer = write(who, &object).await;
                if answer.as_ref().is_err_and(|message| message.starts_with("403 ")) {
                    break;
                }
                assert!(
                    Instant::now() < deadline,
                    "no policy refuses {object}: {answer:?}"
                );
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }

    async fn apply(&self, object: &Value) {
        let path = format!("{}?fieldManager=test&force=true", path(object));
        send(
            &self.admin,
            "PATCH",
            &path,
            Some(object),
            "application/apply-patch+yaml",
        )
        .await
        .unwrap();
    }
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Sends one request; what the server refuses is its message.
async fn send(
    who: &Client,
    method: &str,
    path: &str,
    body: Option<&Value>,
    kind: &str,
) -> Result<Value, String> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::CONTENT_TYPE, kind)
        .body(body.map(Value::to_string).unwrap_or_default().into_bytes())
        .unwrap();
    match who.request::<Value>(request).await {
        Ok(answer) => Ok(answer),
        Err(kube::Error::Api(status)) => Err(format!("{} {}", status.code, status.message)),
        Err(error) => panic!("{method} {path}: {error}"),
    }
}

/// The path of an object: kinds here are those whose plural is the kind and an s.
fn path(object: &Value) -> String {
    let version = object["apiVersion"].as_str().unwrap();
    let root = if version.contains('/') {
        format!("/apis/{version}")
    } else {
        format!("/api/{version}")
    };
    let kind = object["kind"].as_str().unwrap().to_lowercase();
    let plural = match kind.as_str() {
        "networkpolicy" => "networkpolicies".to_owned(),
        _ => format!("{kind}s"),
    };
    let name = object["metadata"]["name"].as_str().unwrap();
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{root}/namespaces/{namespace}/{plural}/{name}"),
        None => format!("{root}/{plural}/{name}"),
    }
}

/// Server-side apply as a dry run: admission and authorization decide, nothing is stored.
async fn write(who: &Client, object: &Value) -> Result<Value, String> {
    let path = format!("{}?fieldManager=trial&force=true&dryRun=All", path(object));
    send(who, "PATCH", &path, Some(object), "application/apply-patch+yaml").await
}

async fn patch(who: &Client, object: &Value, subresource: &str, change: &Value) -> Result<Value, String> {
    let path = format!("{}{subresource}?dryRun=All", path(object));
    send(who, "PATCH", &path, Some(change), "application/merge-patch+json").await
}

async fn delete(who: &Client, object: &Value) -> Result<Value, String> {
    send(
        who,
        "DELETE",
        &format!("{}?dryRun=All", path(object)),
        None,
        "application/json",
    )
    .await
}

async fn read(who: &Client, path: &str) -> Result<Value, String> {
    send(who, "GET", path, None, "application/json").await
}

#[track_caller]
fn refused(what: &str, answer: Result<Value, String>, because: &str) {
    match answer {
        Ok(_) => panic!("{what}: allowed"),
        Err(message) => {
            assert!(
                message.starts_with("403 ") && message.contains(because),
                "{what}: {message}"
            );
        }
    }
}

#[track_caller]
fn allowed(what: &str, answer: Result<Value, String>) {
    if let Err(message) = answer {
        panic!("{what}: {message}");
    }
}

fn gpu_node(name: &str) -> Value {
    json!({"apiVersion": "leasehold.dev/v1alpha1", "kind": "GpuNode", "metadata": {"name": name}, "spec": {}})
}

fn lease(namespace: &str, name: &str) -> Value {
    json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name, "namespace": namespace},
        "spec": {"holderIdentity": "trial"}})
}

fn namespace(name: &str, provider: &str) -> Value {
    let mut object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    if !provider.is_empty() {
        object["metadata"]["labels"] = json!({"leasehold.dev/provider": provider});
    }
    object
}

fn reservation(name: &str, provider: &str) -> Value {
    let address = format!("0x{}", "2".repeat(40));
    let hash = format!("0x{}", "3".repeat(64));
    json!({
        "apiVersion": "leasehold.dev/v1alpha1", "kind": "GpuReservation", "metadata": {"name": name},
        "spec": {
            "market": "default", "allocationNamespace": format!("provider-{provider}"), "allocationName": name,
            "allocationUid": "u", "deadline": 1, "allocation": allocation_spec(&address, &hash),
        },
    })
}

fn allocation(namespace: &str, name: &str) -> Value {
    let (address, hash) = (format!("0x{}", "2".repeat(40)), format!("0x{}", "3".repeat(64)));
    json!({
        "apiVersion": "leasehold.dev/v1alpha1", "kind": "GpuAllocation",
        "metadata": {"name": name, "namespace": namespace}, "spec": allocation_spec(&address, &hash),
    })
}

fn allocation_spec(address: &str, hash: &str) -> Value {
    json!({
        "lease": {"namespace": "team-a", "name": "train", "uid": "u"}, "epoch": 1, "leg": 0, "nodes": 1, "pool": "h100",
        "class": "h100-80g-sxm", "pricePerGpuHour": "1.85", "deposit": "1", "notAfter": 1, "openBy": 1, "onFundsEnd": "Close",
        "node": {"cpu": "1", "memory": "1Gi", "gpus": 1}, "workload": {"job": {"image": "busybox"}},
        "escrow": {
            "chainId": 1, "contract": address, "token": address, "payer": address, "market": address, "closer": address,
            "salt": hash, "id": hash, "startBy": 1, "noticeSeconds": 0, "pauseFor": 0,
            "legs": [{"payee": address, "controller": address, "rate": "1"}],
        },
    })
}

/// Objects of every kind that the provider's operator makes.
fn contents(namespace: &str) -> Vec<Value> {
    let object = |version: &str, kind: &str, more: Value| {
        let mut object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": "trial", "namespace": namespace}});
        object
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        object
    };
    let pods = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}], "restartPolicy": "Never"}});
    let mut always = pods.clone();
    always["spec"]["restartPolicy"] = json!("Always");
    let volume = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    let access = json!({"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "leasehold-tenant-access"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "tenant"}]});
    vec![
        object("v1", "ConfigMap", json!({"data": {"a": "b"}})),
        object("v1", "ServiceAccount", json!({})),
        object("v1", "ResourceQuota", json!({"spec": {"hard": {"pods": "1"}}})),
        object("v1", "LimitRange", json!({"spec": {"limits": []}})),
        object("v1", "PersistentVolumeClaim", json!({"spec": volume})),
        object(
            "v1",
            "Service",
            json!({"spec": {"ports": [{"port": 80}], "selector": {"a": "b"}}}),
        ),
        object(
            "networking.k8s.io/v1",
            "NetworkPolicy",
            json!({"spec": {"podSelector": {}}}),
        ),
        object(
            "apps/v1",
            "StatefulSet",
            json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "serviceName": "s", "template": always}}),
        ),
        object("batch/v1", "Job", json!({"spec": {"template": pods}})),
        object("rbac.authorization.k8s.io/v1", "RoleBinding", access),
    ]
}

async fn agents_write_only_their_own_node(it: &Installation) {
    it.apply(&gpu_node("node-b")).await;
    allowed("its own GpuNode", write(&it.agent, &gpu_node("node-a")).await);
    it.apply(&gpu_node("node-a")).await;
    let status = json!({"status": {"gpuCount": 4}});
    allowed(
        "its own status",
        patch(&it.agent, &gpu_node("node-a"), "/status", &status).await,
    );
    refused(
        "another's status",
        patch(&it.agent, &gpu_node("node-b"), "/status", &status).await,
        "not node-b",
    );
    refused(
        "another's GpuNode",
        write(&it.agent, &gpu_node("node-b")).await,
        "not node-b",
    );
    let unsold = json!({"spec": {"sell": false}});
    refused(
        "what is sold",
        patch(&it.agent, &gpu_node("node-a"), "", &unsold).await,
        "the provider's admin's",
    );
    refused(
        "deleting its own",
        delete(&it.agent, &gpu_node("node-a")).await,
        "cannot delete",
    );
    allowed(
        "its own sign of life",
        write(&it.agent, &lease(HOME, "node-a")).await,
    );
    refused(
        "another's sign of life",
        write(&it.agent, &lease(HOME, "node-b")).await,
        "not node-b",
    );
    refused(
        "the leader's lease",
        write(&it.agent, &lease(HOME, "leasehold-market")).await,
        "not leasehold-market",
    );
    refused(
        "a lease elsewhere",
        write(&it.agent, &lease("kube-system", "node-a")).await,
        "cannot patch",
    );
    refused(
        "a token without a node",
        write(&it.adrift, &gpu_node("node-a")).await,
        "the token names no node",
    );
}

async fn providers_write_only_namespaces_of_their_leases(it: &Installation) {
    let (own, other, bare) = ("lease-own", "lease-other", "lease-bare");
    for (name, provider) in [(own, PROVIDER), (other, "elbe"), (bare, "")] {
        it.apply(&namespace(name, provider)).await;
    }
    for object in contents(own) {
        allowed(&path(&object), write(&it.provider, &object).await);
    }
    for foreign in [
        other,
        bare,
        "kube-system",
        "default",
        HOME,
        "provider-elbe",
        "provider-rhine-west",
    ] {
        for object in contents(foreign) {
            refused(
                &path(&object),
                write(&it.provider, &object).await,
                "may write only in namespaces lease-*",
            );
        }
    }
    allowed(
        "a namespace of its own",
        write(&it.provider, &namespace("lease-new", PROVIDER)).await,
    );
    allowed(
        "deleting its own",
        delete(&it.provider, &namespace(own, PROVIDER)).await,
    );
    for (name, provider) in [
        ("lease-new", ""),
        ("lease-new", "elbe"),
        ("evil", PROVIDER),
        ("kube-system", PROVIDER),
        (other, PROVIDER),
        (bare, PROVIDER),
        (own, "elbe"),
    ] {
        let made = write(&it.provider, &namespace(name, provider)).await;
        refused(
            &format!("namespace {name} labelled {provider:?}"),
            made,
            "may make, change and delete only",
        );
    }
    for name in [other, bare, HOME] {
        let deleted = delete(&it.provider, &namespace(name, "")).await;
        refused(
            &format!("deleting {name}"),
            deleted,
            "may make, change and delete only",
        );
    }

    let mut admin = contents(own).pop().unwrap();
    admin["roleRef"]["name"] = json!("cluster-admin");
    refused(
        "a binding to cluster-admin",
        write(&it.provider, &admin).await,
        "attempting to grant RBAC permissions",
    );
    refused(
        "secrets",
        read(&it.provider, "/api/v1/namespaces/lease-own/secrets").await,
        "cannot list",
    );

    it.apply(&reservation("elbes", "elbe")).await;
    allowed(
        "its own reservation",
        write(&it.provider, &reservation("own", PROVIDER)).await,
    );
    let release = json!({"spec": {"release": true}});
    let touched = patch(&it.provider, &reservation("elbes", "elbe"), "", &release).await;
    refused(
        "another's reservation",
        touched,
        "spec.allocationNamespace is provider-rhine-west",
    );
    refused(
        "deleting another's",
        delete(&it.provider, &reservation("elbes", "elbe")).await,
        "provider-rhine-west",
    );
    allowed(
        "its leader lease",
        write(&it.provider, &lease(HOME, "leasehold-provider-rhine-west")).await,
    );
    refused(
        "the market's leader lease",
        write(&it.provider, &lease(HOME, "leasehold-market")).await,
        "cannot patch",
    );
    let steal = lease(HOME, "leasehold-provider-elbe");
    let leases = "/apis/coordination.k8s.io/v1/namespaces/leasehold-system/leases?dryRun=All";
    let stolen = send(&it.provider, "POST", leases, Some(&steal), "application/json").await;
    refused(
        "making another's leader lease",
        stolen,
        "may write only in namespaces lease-*",
    );
}

async fn providers_answer_allocations_and_change_nothing_else(it: &Installation) {
    for (who, own, other) in [(&it.provider, PROVIDER, "elbe"), (&it.guest, "elbe", PROVIDER)] {
        let (mine, theirs) = (
            allocation(&format!("provider-{own}"), "a"),
            allocation(&format!("provider-{other}"), "a"),
        );
        it.apply(&mine).await;
        it.apply(&theirs).await;
        let status = json!({"status": {"phase": "Reserved"}});
        allowed("its answer", patch(who, &mine, "/status", &status).await);
        allowed("reading its own", read(who, &path(&mine)).await);
        refused(
            "another's answer",
            patch(who, &theirs, "/status", &status).await,
            "cannot patch",
        );
        refused("reading another's", read(who, &path(&theirs)).await, "cannot get");
        for (what, change) in [
            ("spec", json!({"spec": {"release": true}})),
            ("finalizers", json!({"metadata": {"finalizers": ["x.y/z"]}})),
            ("labels", json!({"metadata": {"labels": {"a": "b"}}})),
        ] {
            refused(what, patch(who, &mine, "", &change).await, "cannot patch");
        }
        // What comes in by the status is status alone.
        let sly = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"release": true}, "status": {"phase": "Reserved"}});
        let after = patch(who, &mine, "/status", &sly).await.unwrap();
        assert_ne!(after["spec"]["release"], true, "spec changed by status");
        assert!(
            after["metadata"]["labels"]["a"].is_null(),
            "labels changed by status: {}",
            after["metadata"]
        );
        refused("deleting it", delete(who, &mine).await, "cannot delete");
        refused(
            "making one",
            write(who, &allocation(&format!("provider-{own}"), "new")).await,
            "cannot patch",
        );

        let provider = |name: &str, payee: &str| {
            json!({"apiVersion": "leasehold.dev/v1alpha1", "kind": "GpuProvider", "metadata": {"name": name},
                "spec": {"payee": format!("0x{}", payee.repeat(40)), "controller": format!("0x{}", "1".repeat(40))}})
        };
        it.apply(&provider(own, "1")).await;
        it.apply(&provider(other, "1")).await;
        let payee = json!({"spec": {"payee": format!("0x{}", "9".repeat(40))}});
        allowed("its own payee", patch(who, &provider(own, "1"), "", &payee).await);
        refused(
            "another's payee",
            patch(who, &provider(other, "1"), "", &payee).await,
            "cannot patch",
        );
        let standing = json!({"status": {"observedGeneration": 1}});
        refused(
            "its standing",
            patch(who, &provider(own, "1"), "/status", &standing).await,
            "cannot patch",
        );
        let offer = |name: &str| {
            json!({"apiVersion": "leasehold.dev/v1alpha1", "kind": "GpuOffer",
                "metadata": {"name": name, "namespace": format!("provider-{name}")}, "spec": {"rows": []}})
        };
        allowed("its offer", write(who, &offer(own)).await);
        refused("another's offer", write(who, &offer(other)).await, "cannot patch");
        allowed(
            "its sign of life",
            write(who, &lease(&format!("provider-{own}"), own)).await,
        );
        refused(
            "another's",
            write(who, &lease(&format!("provider-{other}"), other)).await,
            "cannot patch",
        );
        refused(
            "leases of tenants",
            read(who, "/apis/leasehold.dev/v1alpha1/gpuleases").await,
            "cannot list",
        );
    }
}

async fn the_market_reads_only_the_wallets_it_was_given(it: &Installation) {
    it.apply(&namespace("team-a", "")).await;
    for name in ["wallet", "other"] {
        it.apply(
            &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "team-a"},
            "stringData": {"privateKey": "0x1"}}),
        )
        .await;
    }
    let secret = |name: &str| format!("/api/v1/namespaces/team-a/secrets/{name}");
    refused(
        "a wallet it was not given",
        read(&it.market, &secret("wallet")).await,
        "cannot get",
    );
    // The very commands that NOTES.txt prints.
    for words in [
        "-n team-a create role wallet-reader --verb=get --resource=secrets --resource-name=wallet",
        "-n team-a create rolebinding wallet-reader --role=wallet-reader --serviceaccount=leasehold-system:leasehold-market",
    ] {
        succeed(it.cluster.kubectl().args(words.split(' ')));
    }
    let deadline = Instant::now() + PATIENCE;
    while let Err(message) = read(&it.market, &secret("wallet")).await {
        assert!(Instant::now() < deadline, "{message}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    refused(
        "another Secret beside it",
        read(&it.market, &secret("other")).await,
        "cannot get",
    );
    refused(
        "all of them",
        read(&it.market, "/api/v1/namespaces/team-a/secrets").await,
        "cannot list",
    );
    refused(
        "its own namespace's",
        read(&it.market, "/api/v1/namespaces/leasehold-system/secrets").await,
        "cannot list",
    );
}

/// What one account may do, as lines of a table: by namespace where it is less than everywhere.
async fn rights(who: &Client, resources: &[Resource]) -> Vec<(String, String, String)> {
    let mut questions = Vec::new();
    for resource in resources {
        questions.push((resource, ""));
        if resource.namespaced {
            questions
                .extend([HOME, "provider-rhine-west", "provider-elbe", "kube-system"].map(|n| (resource, n)));
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

struct Resource {
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

async fn verbs(who: &Client, resource: &Resource, namespace: &str) -> Vec<&'static str> {
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
async fn served(admin: &Client) -> Vec<Resource> {
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
    resources
}

async fn the_documented_table_is_the_whole_of_it(it: &Installation) {
    let resources = served(&it.admin).await;
    assert!(
        resources.len() > 100,
        "only {} resources were found",
        resources.len()
    );
    // What everybody who is somebody may do is no right of ours.
    let nobody = it.cluster.token_for("default", "default").await.unwrap();
    let nobody = rights(&it.cluster.client_with_token(&nobody).await.unwrap(), &resources).await;
    let mut text = String::from(
        "# Who may do what\n\n\
         Written and checked by `cargo test -p xtask --test permissions` with the tokens of an installed chart: every verb, \
         resource and subresource that the API server serves was asked for, and what is not listed was refused. The chart \
         here is release `leasehold` in `leasehold-system`, market and provider `rhine-west` in one cluster, and a provider \
         `elbe` that comes from outside. Rights to single named objects don't show here; they are named below.\n\n\
         Admission policies narrow this further:\n\n\
         - **Agent**: writes only the GpuNode and the Lease named after the node that its token was made on, and never a \
         GpuNode's `spec`.\n\
         - **Provider**: writes namespaced objects only in namespaces `lease-*` that carry \
         `leasehold.dev/provider=<its name>`; makes, changes and deletes only such namespaces; writes only its own \
         GpuReservations.\n\n\
         By name: the market's operator may get the Secrets with RPC URLs in its own namespace and each wallet that a \
         tenant's Role names; each operator renews its own leader Lease; a provider may get and patch its own GpuProvider; \
         the provider's operator may bind the ClusterRole `leasehold-tenant-access` and no other.\n",
    );
    for (title, who) in [
        ("Market's operator", &it.market),
        (
            "Provider's operator, in the cluster that is the market too",
            &it.provider,
        ),
        ("Provider `elbe` on this market", &it.guest),
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
    let document = xtask::root().join(DOCUMENT);
    if std::env::var_os("LEASEHOLD_WRITE").is_some() {
        std::fs::write(&document, &text).unwrap();
    }
    let documented = std::fs::read_to_string(&document).unwrap_or_default();
    let pairs = documented.lines().zip(text.lines()).enumerate();
    if let Some((line, (has, is))) = pairs.into_iter().find(|(_, (has, is))| has != is) {
        panic!(
            "{DOCUMENT}:{}: says {has:?}, the cluster {is:?}; with LEASEHOLD_WRITE=1 the test writes it",
            line + 1
        );
    }
    assert_eq!(
        documented.lines().count(),
        text.lines().count(),
        "{DOCUMENT}: with LEASEHOLD_WRITE=1 the test writes it"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_token_does_its_own_work_and_no_other() {
    if let Err(error) = Unavailable::check() {
        eprintln!("SKIPPED permissions: {error}");
        return;
    }
    let it = Installation::new("permissions").await;
    agents_write_only_their_own_node(&it).await;
    providers_write_only_namespaces_of_their_leases(&it).await;
    providers_answer_allocations_and_change_nothing_else(&it).await;
    the_market_reads_only_the_wallets_it_was_given(&it).await;
    the_documented_table_is_the_whole_of_it(&it).await;
    it.cluster.down().await.unwrap();
}
