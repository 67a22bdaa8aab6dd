//! What RBAC can't confine, and who answers for which part of an object: tried by doing it.

use kube::Client;
use serde_json::{Value, json};

use crate::installation::{HOME, Installation, PROVIDER, succeed};
use crate::objects::{allocation, contents, gpu_node, lease, namespace, pool, reservation};
use crate::requests::{allowed, create, delete, patch, path, read, refused, send, soon_allowed, write};

pub(crate) async fn agents_write_only_their_own_node(it: &Installation) {
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

/// What runs is made once and never changed.
fn is_made_once(object: &Value) -> bool {
    object["kind"] == "Job"
}

/// Writes an object as the provider's operator does.
async fn put(who: &Client, object: &Value) -> Result<Value, String> {
    if is_made_once(object) {
        create(who, object).await
    } else {
        write(who, object).await
    }
}

pub(crate) async fn providers_write_only_namespaces_of_their_leases(it: &Installation) {
    let (own, other, bare) = ("lease-own", "lease-other", "lease-bare");
    for (name, provider) in [(own, PROVIDER), (other, "elbe"), (bare, "")] {
        it.apply(&namespace(name, provider)).await;
    }
    for object in contents(own) {
        allowed(&path(&object), put(&it.provider, &object).await);
        if is_made_once(&object) {
            refused(&path(&object), write(&it.provider, &object).await, "cannot patch");
        }
    }
    pods_of_leases_stay_isolated(it).await;
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
                put(&it.provider, &object).await,
                "may write only in namespaces lease-*",
            );
        }
    }
    provider_namespaces(it).await;
    provider_namespaces_stay_confined(it).await;
    provider_cluster_objects(it).await;
}

/// A container that can be root runs in a user namespace, whoever creates its pod. The chart makes the namespace in which the
/// operator tries pods, with the identity of the pods of leases.
async fn pods_of_leases_stay_isolated(it: &Installation) {
    let pod = |name: &str, spec: Value, container: Value| {
        let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "lease-checks-leasehold"},
            "spec": {"serviceAccountName": "lease", "containers": [{"name": "c", "image": "i", "securityContext": container}]}});
        pod["spec"]
            .as_object_mut()
            .unwrap()
            .extend(spec.as_object().unwrap().clone());
        pod
    };
    let never_root = json!({"securityContext": {"runAsNonRoot": true}});
    for admitted in [
        pod("in-user-namespace", json!({"hostUsers": false}), json!({})),
        pod("never-root", never_root.clone(), json!({})),
    ] {
        allowed(&path(&admitted), create(&it.provider, &admitted).await);
    }
    for denied in [
        pod("on-the-host", json!({}), json!({})),
        pod("host-users", json!({"hostUsers": true}), json!({})),
        pod("one-root", never_root, json!({"runAsNonRoot": false})),
    ] {
        let created = create(&it.provider, &denied).await;
        refused(&path(&denied), created, "must have hostUsers: false");
    }
}

/// Which namespaces a provider may make, change and delete: `lease-*` with its own label.
async fn provider_namespaces(it: &Installation) {
    let (own, other, bare) = ("lease-own", "lease-other", "lease-bare");
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
}

/// Without the label of Pod Security, a namespace would admit pods that are root on their nodes.
async fn provider_namespaces_stay_confined(it: &Installation) {
    let refusal = "pod-security.kubernetes.io/enforce with the value baseline";
    let confined = |name: &str, enforce: Option<&str>, version: Option<&str>| {
        let mut object = namespace(name, PROVIDER);
        object["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] = json!(enforce);
        object["metadata"]["labels"]["pod-security.kubernetes.io/enforce-version"] = json!(version);
        object
    };
    let strict = confined("lease-strict", Some("restricted"), Some("latest"));
    allowed(
        "a namespace under restricted",
        create(&it.provider, &strict).await,
    );
    for (enforce, version) in [
        (Some("privileged"), None),
        (None, None),
        (Some("baseline"), Some("v1.0")),
    ] {
        let own = confined("lease-own", enforce, version);
        let labels = json!({"metadata": {"labels": own["metadata"]["labels"]}});
        let what = format!("relabelling its namespace to {enforce:?} {version:?}");
        refused(&what, patch(&it.provider, &own, "", &labels).await, refusal);
        let mut new = confined("lease-unconfined", enforce, version);
        let labels = new["metadata"]["labels"].as_object_mut().unwrap();
        labels.retain(|_, value| !value.is_null());
        let what = format!("a new namespace with {enforce:?} {version:?}");
        refused(&what, create(&it.provider, &new).await, refusal);
    }
}

/// What a provider may not reach beside namespaces: other accounts' permissions, Secrets, reservations and leader Leases.
async fn provider_cluster_objects(it: &Installation) {
    let mut admin = contents("lease-own").pop().unwrap();
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
    for (provider, named) in [
        (Some("elbe"), "another's pool"),
        (Some(PROVIDER), "its pool"),
        (None, "a pool of all"),
    ] {
        let pool = pool(provider);
        it.apply(&pool).await;
        let selling = json!({"status": {"userNamespaces": [{"node": "n", "result": "Proven"}]}});
        let written = patch(&it.provider, &pool, "/status", &selling).await;
        match provider {
            Some("elbe") => refused(named, written, "spec.provider is rhine-west, or is not set"),
            _ => allowed(named, written),
        }
    }
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

pub(crate) async fn providers_answer_allocations_and_change_nothing_else(it: &Installation) {
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

        provider_publishes(it, who, own, other).await;
    }
}

/// A provider writes its own payee, offer and liveness, and no other's.
async fn provider_publishes(it: &Installation, who: &Client, own: &str, other: &str) {
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

pub(crate) async fn the_market_reads_only_the_wallets_it_was_given(it: &Installation) {
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
    soon_allowed("the wallet it was given", async || {
        read(&it.market, &secret("wallet")).await
    })
    .await;
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

/// Whoever may edit a namespace may lease GPUs there, and whoever may view it may not.
pub(crate) async fn editors_of_a_namespace_lease_and_viewers_read(it: &Installation) {
    it.apply(&namespace("team-b", "")).await;
    for role in ["edit", "view"] {
        succeed(
            it.cluster
                .kubectl()
                .args(["-n", "team-b", "create", "serviceaccount", role]),
        );
        succeed(
            it.cluster
                .kubectl()
                .args(["-n", "team-b", "create", "rolebinding", role])
                .args([
                    format!("--clusterrole={role}"),
                    format!("--serviceaccount=team-b:{role}"),
                ]),
        );
    }
    let lease = json!({
        "apiVersion": "leasehold.dev/v1alpha1", "kind": "GpuLease",
        "metadata": {"name": "train", "namespace": "team-b"},
        "spec": {
            "perNode": {"cpu": "1", "memory": "1Gi", "gpus": 1}, "term": {"duration": "1h"},
            "workload": {"job": {"image": "busybox"}},
            "payment": {"network": "base", "maxPricePerGpuHour": "1", "wallet": {"secretName": "wallet"}},
        },
    });
    let client = async |account: &str| {
        let token = it.cluster.token_for("team-b", account).await.unwrap();
        it.cluster.client_with_token(&token).await.unwrap()
    };
    let (editor, viewer) = (client("edit").await, client("view").await);
    soon_allowed("a lease by an editor", async || create(&editor, &lease).await).await;
    refused(
        "a lease by a viewer",
        create(&viewer, &lease).await,
        "cannot create",
    );
    let leases = "/apis/leasehold.dev/v1alpha1/namespaces/team-b/gpuleases";
    allowed("reading leases", read(&viewer, leases).await);
    let networks = "/apis/leasehold.dev/v1alpha1/paymentnetworks";
    refused("networks", read(&viewer, networks).await, "cannot list");
    succeed(it.cluster.kubectl().args([
        "create",
        "clusterrolebinding",
        "market-readers",
        "--clusterrole=leasehold-market-reader",
        "--serviceaccount=team-b:view",
    ]));
    soon_allowed("networks by a market reader", async || {
        read(&viewer, networks).await
    })
    .await;
}
