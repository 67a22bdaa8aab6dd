//! What the chart renders, without a cluster: it lints under strict rules, every set of values that people would
//! use makes valid objects, values that can't work are refused by name, and no template hands out more than it says.
#![allow(clippy::unwrap_used, reason = "a test's helpers fail by panicking too")]

use std::io::Write as _;
use std::process::{Command, Stdio};

use leasehold_testcluster::{Stderr, Tools};
use serde_json::{Value, json};

struct Helm(Command);

fn helm() -> Tools {
    Tools::ensure(&Stderr::default()).expect("the tools of the test cluster bring helm")
}

impl Helm {
    fn new(tools: &Tools, arguments: &[&str]) -> Self {
        let mut command = Command::new(&tools.helm);
        command
            .args(arguments)
            .args(["-f", "-"])
            .current_dir(leasehold_tasks::root().join("charts"));
        Self(command)
    }

    /// What it says, and whether it is content.
    fn run(mut self, values: &Value) -> (bool, String) {
        let mut child = self
            .0
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(values.to_string().as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        (
            output.status.success(),
            if output.status.success() {
                text[0].clone()
            } else {
                text.concat()
            },
        )
    }
}

fn payee() -> String {
    format!("0x{}", "1".repeat(40))
}

/// The least that a provider and market in one cluster need.
fn one_cluster() -> Value {
    json!({"provider": {"name": "rhine-west", "payee": payee(), "controller": payee()}})
}

fn with(mut values: Value, more: &Value) -> Value {
    merge(&mut values, more);
    values
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

fn every_installation() -> Vec<(&'static str, Value)> {
    let network = json!({"name": "base", "chainId": 8453, "rpcSecretName": "base-rpc",
        "secondRpcSecretName": "base-rpc-2", "escrow": payee(), "marketId": payee(), "token": {"address": payee(), "symbol": "USDC", "decimals": 6},
        "provisionAt": "Safe", "outageGrace": "10m", "maxBlockAge": "5m", "releaseAt": "Safe",
        "limits": {"feePerGasGwei": 400, "gasPerTransaction": 3_000_000, "nativePerDay": "5"}});
    let pool = json!({"name": "h100", "pricePerGpuHour": "1.85", "network": "base"});
    let all = json!({
        "otlp": {"endpoint": "http://collector:4318"},
        "paymentNetworks": [network], "pools": [pool], "rpcSecretNames": ["other-rpc"],
        "metrics": {"serviceMonitor": {"enabled": true, "labels": {"release": "prometheus"}}, "dashboard": {"enabled": true}},
        "networkPolicy": {"metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
            "extraEgress": [{"ports": [{"port": 4318, "protocol": "TCP"}]}]},
        "image": {"pullSecrets": [{"name": "registry"}]},
        "gateway": {"domain": "leases.example.org", "authoritySecretName": "authority", "service": {"annotations": {"a": "b"}}},
    });
    let agent = |driver: Value| with(one_cluster(), &json!({"agent": {"driver": driver}}));
    vec![
        ("one cluster", one_cluster()),
        ("everything on", with(one_cluster(), &all)),
        (
            "a market alone",
            json!({"provider": {"enabled": false}, "agent": {"enabled": false}, "market": {"providers": [
                {"name": "rhine-west", "payee": payee(), "controller": payee(), "region": "eu-west"},
                {"name": "elbe", "payee": payee(), "controller": payee(), "tokenSecret": true},
                {"name": "oder", "payee": payee(), "controller": payee(), "subject": {"kind": "User", "name": "oder"}},
            ]}, "gateway": {"domain": "leases.example.org"}}),
        ),
        (
            "a provider alone with a connector",
            json!({"market": {"enabled": false}, "connector": {"gateways": ["tunnel.leases.example.org:443"],
                    "kubeconfigSecretName": "market-connector", "authoritySecretName": "authority"},
                "provider": {"name": "rhine-west", "payee": payee(), "market": {"kubeconfigSecretName": "market"}}}),
        ),
        (
            "a provider alone",
            json!({"market": {"enabled": false},
                "provider": {"name": "rhine-west", "payee": payee(), "market": {"kubeconfigSecretName": "market"}}}),
        ),
        (
            "a second provider in the cluster",
            with(
                one_cluster(),
                &json!({"crds": {"install": false}, "market": {"enabled": false}, "agent": {"enabled": false}}),
            ),
        ),
        (
            "the agent by GPU Operator's root",
            agent(json!({"from": "operatorRoot", "privileged": true})),
        ),
        (
            "the agent by a path of the host",
            agent(json!({"from": "hostPath"})),
        ),
        (
            "as little as can be",
            with(
                one_cluster(),
                &json!({"admissionPolicies": {"enabled": false}, "networkPolicy": {"enabled": false},
                "podDisruptionBudget": {"enabled": false}, "uninstall": {"force": true},
                "market": {"replicas": 1}, "provider": {"replicas": 1}}),
            ),
        ),
    ]
}

fn render(tools: &Tools, values: &Value) -> Vec<Value> {
    let arguments = [
        "template",
        "leasehold",
        "leasehold",
        "--namespace",
        "leasehold-system",
    ];
    let (good, text) = Helm::new(tools, &arguments).run(values);
    assert!(good, "{text}");
    serde_norway::Deserializer::from_str(&text)
        .map(|document| serde::Deserialize::deserialize(document).unwrap())
        .filter(|object: &Value| !object.is_null())
        .collect()
}

fn is(object: &Value, kind: &str) -> bool {
    object["kind"] == kind
}

fn name(object: &Value) -> String {
    format!(
        "{} {}",
        object["kind"].as_str().unwrap(),
        object["metadata"]["name"].as_str().unwrap()
    )
}

#[tokio::test]
async fn every_installation_lints_and_renders() {
    let tools = helm();
    for (what, values) in every_installation() {
        let (good, text) = Helm::new(&tools, &["lint", "leasehold", "--strict"]).run(&values);
        assert!(good, "{what}: {text}");
        let objects = render(&tools, &values);
        let mut names: Vec<_> = objects
            .iter()
            .map(|o| (name(o), o["metadata"]["namespace"].to_string()))
            .collect();
        names.sort();
        let count = names.len();
        names.dedup();
        assert_eq!(count, names.len(), "{what}: an object twice");
    }
}

#[tokio::test]
async fn values_that_cannot_work_are_refused_by_name() {
    let tools = helm();
    let provider = |more: Value| with(one_cluster(), &json!({"provider": more}));
    let network = |more: Value| {
        with(
            one_cluster(),
            &json!({"paymentNetworks": [with(
            json!({"name": "base", "chainId": 1, "escrow": payee(), "rpcUrl": "http://x",
                "token": {"address": payee(), "symbol": "X", "decimals": 6}}), &more)]}),
        )
    };
    for (values, says) in [
        (json!({}), "provider.name"),
        (provider(json!({"name": "Rhine"})), "/provider/name"),
        (provider(json!({"payee": "0x12"})), "/provider/payee"),
        (provider(json!({"payee": ""})), "provider.payee"),
        (provider(json!({"controller": ""})), "cast wallet address"),
        (provider(json!({"replica": 2})), "replica"),
        (provider(json!({"replicas": -1})), "/provider/replicas"),
        (with(one_cluster(), &json!({"markte": {}})), "markte"),
        (
            with(one_cluster(), &json!({"agent": {"driver": {"from": "magic"}}})),
            "/agent/driver/from",
        ),
        (
            with(one_cluster(), &json!({"otlp": {"endpoint": "collector:4318"}})),
            "/otlp/endpoint",
        ),
        (
            with(
                one_cluster(),
                &json!({"gateway": {"domain": "Leases.example.org"}}),
            ),
            "/gateway/domain",
        ),
        (
            with(
                one_cluster(),
                &json!({"connector": {"gateways": ["leases.example.org"]}}),
            ),
            "/connector/gateways/0",
        ),
        (
            json!({"market": {"enabled": false}, "connector": {"gateways": ["tunnel.leases.example.org:443"]},
                "provider": {"name": "rhine-west", "payee": payee(), "market": {"kubeconfigSecretName": "market"}}}),
            "connector.kubeconfigSecretName",
        ),
        (network(json!({"chainId": 0})), "/paymentNetworks/0/chainId"),
        (network(json!({"rpcSecretName": "both"})), "/paymentNetworks/0"),
        (
            with(
                one_cluster(),
                &json!({"market": {"providers": [
            {"name": "rhine-west", "payee": payee(), "controller": payee()}]}}),
            ),
            "is added by itself",
        ),
    ] {
        let (good, text) = Helm::new(&tools, &["template", "leasehold", "leasehold"]).run(&values);
        assert!(!good, "rendered: {values}");
        assert!(text.contains(says), "{values}: wanted {says:?} in\n{text}");
    }
}

#[tokio::test]
async fn no_role_holds_wildcards_or_reads_secrets_it_was_not_named() {
    let tools = helm();
    let mut rules = 0;
    for (what, values) in every_installation() {
        for role in render(&tools, &values)
            .iter()
            .filter(|o| is(o, "ClusterRole") || is(o, "Role"))
        {
            for rule in role["rules"].as_array().unwrap() {
                rules += 1;
                let words = |field: &str| -> Vec<&str> {
                    rule[field]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .map(|word| word.as_str().unwrap())
                        .collect()
                };
                let all = [words("apiGroups"), words("resources"), words("verbs")].concat();
                assert!(
                    !all.iter().any(|word| word.contains('*')),
                    "{what}: {}: {rule}",
                    name(role)
                );
                for verb in ["escalate", "impersonate", "deletecollection"] {
                    assert!(!all.contains(&verb), "{what}: {}: {rule}", name(role));
                }
                if all.contains(&"bind") {
                    assert_eq!(
                        words("resourceNames"),
                        ["leasehold-tenant-access"],
                        "{what}: {rule}"
                    );
                }
                if all.contains(&"secrets") {
                    assert!(
                        is(role, "Role") && words("verbs") == ["get"],
                        "{what}: {}: {rule}",
                        name(role)
                    );
                    assert!(
                        !words("resourceNames").is_empty(),
                        "{what}: {}: {rule}",
                        name(role)
                    );
                }
            }
        }
    }
    assert!(rules > 100, "only {rules} rules were looked at");
}

#[tokio::test]
async fn every_pod_but_the_agents_meets_the_restricted_standard() {
    let tools = helm();
    let mut pods = 0;
    for (what, values) in every_installation() {
        for object in render(&tools, &values) {
            let spec = match object["kind"].as_str().unwrap() {
                "Pod" => &object["spec"],
                "Deployment" | "Job" | "DaemonSet" => &object["spec"]["template"]["spec"],
                _ => continue,
            };
            pods += 1;
            let what = format!("{what}: {}", name(&object));
            let container = &spec["containers"][0]["securityContext"];
            assert_eq!(
                spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault",
                "{what}"
            );
            assert_eq!(container["readOnlyRootFilesystem"], true, "{what}");
            assert!(
                spec["containers"][0]["resources"]["limits"]["memory"].is_string(),
                "{what}"
            );
            if is(&object, "DaemonSet") {
                assert!(
                    spec["volumes"]
                        .as_array()
                        .unwrap()
                        .iter()
                        .all(|v| v["hostPath"]["path"].is_string()),
                    "{what}"
                );
                let mounts = spec["containers"][0]["volumeMounts"].as_array().unwrap();
                assert!(mounts.iter().all(|mount| mount["readOnly"] == true), "{what}");
                assert_eq!(
                    container["privileged"] == true,
                    values["agent"]["driver"]["privileged"] == true,
                    "{what}"
                );
                continue;
            }
            assert_eq!(spec["securityContext"]["runAsNonRoot"], true, "{what}");
            assert_eq!(container["allowPrivilegeEscalation"], false, "{what}");
            assert_eq!(container["capabilities"], json!({"drop": ["ALL"]}), "{what}");
            for outside in ["hostPID", "hostNetwork", "hostIPC"] {
                assert!(spec[outside].is_null(), "{what}");
            }
            for volume in spec["volumes"].as_array().into_iter().flatten() {
                assert!(volume["hostPath"].is_null(), "{what}");
            }
        }
    }
    assert!(pods > 20, "only {pods} pods were looked at");
}

/// The provider operator lets in the pods that these labels select.
#[tokio::test]
async fn the_provider_operator_knows_the_connector_by_its_labels() {
    let tools = helm();
    let values = with(
        one_cluster(),
        &json!({"gateway": {"domain": "leases.example.org"}}),
    );
    let objects = render(&tools, &values);
    let template = |role: &str| {
        let is_of_role =
            |o: &&Value| is(o, "Deployment") && o["metadata"]["name"] == format!("leasehold-{role}");
        objects.iter().find(is_of_role).unwrap()["spec"]["template"].clone()
    };
    let arguments = template("provider")["spec"]["containers"][0]["args"].clone();
    let selected: Vec<(&str, &str)> = arguments
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|argument| argument.as_str()?.strip_prefix("--connector-label="))
        .map(|label| label.split_once('=').unwrap())
        .collect();
    assert_eq!(selected.len(), 3, "{arguments}");
    let selects = |role: &str| {
        let labels = &template(role)["metadata"]["labels"];
        selected.iter().all(|(key, value)| labels[key] == *value)
    };
    assert!(selects("connector"));
    for other in ["gateway", "market", "provider"] {
        assert!(!selects(other), "{other}");
    }
}

#[tokio::test]
async fn uninstalling_keeps_the_kinds_and_asks_first() {
    let tools = helm();
    let objects = render(&tools, &one_cluster());
    let crds: Vec<_> = objects
        .iter()
        .filter(|o| is(o, "CustomResourceDefinition"))
        .collect();
    assert_eq!(crds.len(), leasehold_crds::all().len());
    for crd in crds {
        assert_eq!(
            crd["metadata"]["annotations"]["helm.sh/resource-policy"],
            "keep",
            "{}",
            name(crd)
        );
    }
    let asks = |objects: &[Value]| {
        objects
            .iter()
            .any(|o| is(o, "Job") && o["metadata"]["annotations"]["helm.sh/hook"] == "pre-delete")
    };
    assert!(asks(&objects));
    let forced = with(one_cluster(), &json!({"uninstall": {"force": true}}));
    assert!(!asks(&render(&tools, &forced)));
}

#[tokio::test]
async fn the_job_for_objects_runs_in_every_sync_of_argo_cd() {
    let tools = helm();
    let (_, values) = every_installation().remove(1);
    let jobs = |values: &Value| -> Vec<Value> {
        let objects = render(&tools, values);
        let jobs = objects.into_iter().filter(|o| is(o, "Job"));
        jobs.filter(|o| o["metadata"]["annotations"]["helm.sh/hook"].is_null())
            .collect()
    };
    let before = jobs(&values).remove(0);
    assert_eq!(
        before["metadata"]["annotations"]["argocd.argoproj.io/hook"],
        "Sync"
    );
    let mut changed = values;
    changed["pools"][0]["pricePerGpuHour"] = json!("1.90");
    let after = jobs(&changed).remove(0);
    assert_ne!(before["metadata"]["name"], after["metadata"]["name"]);
}

#[tokio::test]
async fn the_series_of_dcgm_exporter_can_be_disabled() {
    let tools = helm();
    let flag = |values: &Value| {
        let objects = render(&tools, values);
        let agent = objects.into_iter().find(|o| is(o, "DaemonSet")).unwrap();
        let args = agent["spec"]["template"]["spec"]["containers"][0]["args"].clone();
        args.as_array()
            .unwrap()
            .iter()
            .any(|arg| arg == "--dcgm-metrics=false")
    };
    assert!(!flag(&one_cluster()));
    assert!(flag(&with(
        one_cluster(),
        &json!({"agent": {"dcgmMetrics": false}})
    )));
}

#[tokio::test]
async fn releases_in_one_cluster_share_no_cluster_wide_name() {
    let tools = helm();
    let second = with(
        one_cluster(),
        &json!({"crds": {"install": false}, "market": {"enabled": false}, "agent": {"enabled": false},
            "provider": {"name": "elbe"}}),
    );
    let (good, text) = Helm::new(
        &tools,
        &[
            "template",
            "leasehold-elbe",
            "leasehold",
            "--namespace",
            "leasehold-system",
        ],
    )
    .run(&second);
    assert!(good, "{text}");
    let others: Vec<Value> = serde_norway::Deserializer::from_str(&text)
        .map(|document| serde::Deserialize::deserialize(document).unwrap())
        .collect();
    let named = |object: &Value| (object["metadata"]["namespace"].to_string(), name(object));
    let first: Vec<_> = render(&tools, &one_cluster()).iter().map(named).collect();
    let common: Vec<_> = others
        .iter()
        .filter(|o| !o.is_null())
        .map(named)
        .filter(|n| first.contains(n))
        .collect();
    assert!(common.is_empty(), "{common:?}");
}
