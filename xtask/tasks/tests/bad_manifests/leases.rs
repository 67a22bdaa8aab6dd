//! Leases that are refused.

use serde_json::{Value, json};

use crate::{
    good::{bare, job, service, session},
    row::{Row, with, without},
};

pub(crate) fn rows() -> Vec<Row> {
    [
        shape(),
        choice(),
        workload(),
        container(),
        output(),
        money(),
        around(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Numbers, units and sizes.
fn shape() -> Vec<Row> {
    vec![
        with("no nodes", job(), "/spec/nodes", 0),
        with("less than no nodes", job(), "/spec/nodes", -1),
        with("too many nodes", job(), "/spec/nodes", 65),
        with("half a node", job(), "/spec/nodes", 1.5),
        with("a number as text", job(), "/spec/nodes", "2"),
        with(
            "beyond 64 bits",
            job(),
            "/spec/nodes",
            18_446_744_073_709_551_615_u64,
        ),
        with("no GPUs", job(), "/spec/perNode/gpus", 0),
        with("less than no GPUs", job(), "/spec/perNode/gpus", -8),
        with("more GPUs than a node has", job(), "/spec/perNode/gpus", 17),
        without("GPUs not said", job(), "/spec/perNode/gpus"),
        with("no CPU", job(), "/spec/perNode/cpu", "0m"),
        with("negative CPU", job(), "/spec/perNode/cpu", "-4"),
        with("CPU in GHz", job(), "/spec/perNode/cpu", "4GHz"),
        with("CPU in millionths", job(), "/spec/perNode/cpu", "4000000u"),
        with("no CPU as a number", job(), "/spec/perNode/cpu", 0),
        with("negative CPU as a number", job(), "/spec/perNode/cpu", -4),
        with(
            "CPU as a fraction that is not text",
            job(),
            "/spec/perNode/cpu",
            0.5,
        ),
        with("no memory", job(), "/spec/perNode/memory", "0Gi"),
        with("memory in GB", job(), "/spec/perNode/memory", "16GB"),
        with("memory in GiB", job(), "/spec/perNode/memory", "16GiB"),
        with("memory with a space", job(), "/spec/perNode/memory", "16 Gi"),
        with("no memory as a number", job(), "/spec/perNode/memory", 0),
        with("no memory in exponents", job(), "/spec/perNode/memory", "0e9"),
        with("memory beyond 63 bits", job(), "/spec/perNode/memory", "9999Pi"),
        with(
            "digits without end",
            job(),
            "/spec/perNode/memory",
            "9".repeat(400),
        ),
        with(
            "negative scratch",
            job(),
            "/spec/perNode/ephemeralStorage",
            "-1Gi",
        ),
        with("a volume of nothing", job(), "/spec/storage/size", "0"),
        with("a volume of no size", job(), "/spec/storage/size", ""),
        without("a volume whose size is not said", job(), "/spec/storage/size"),
    ]
}

/// Which GPUs, where, how long.
fn choice() -> Vec<Row> {
    let many: Vec<String> = (0..17).map(|n| format!("class-{n}")).collect();
    vec![
        with(
            "a class by its product name",
            job(),
            "/spec/gpu/classes/0",
            "H100 80GB",
        ),
        with("a class that is a path", job(), "/spec/gpu/classes/0", "../h100"),
        with("an empty class", job(), "/spec/gpu/classes/0", ""),
        with("a class twice", job(), "/spec/gpu/classes/1", "h100-80g-sxm").named("spec.gpu.classes"),
        with("too many classes", job(), "/spec/gpu/classes", many),
        with("classes as one text", job(), "/spec/gpu/classes", "h100-80g-sxm"),
        with("GPU memory in GB", job(), "/spec/gpu/memory", "80GB"),
        with(
            "a capability of one number",
            job(),
            "/spec/gpu/computeCapability",
            "9",
        ),
        with(
            "a capability as a number",
            job(),
            "/spec/gpu/computeCapability",
            9.0,
        ),
        with("a version of three numbers", job(), "/spec/gpu/cuda", "12.4.1"),
        with("a version with a sign", job(), "/spec/gpu/cuda", ">=12.4"),
        with(
            "a region with a line break",
            job(),
            "/spec/placement/regions/0",
            "eu\nwest",
        ),
        with(
            "a provider that is a path",
            job(),
            "/spec/placement/providers/0",
            "../kube-system",
        ),
        with("an unknown spread", job(), "/spec/placement/spread", "Everywhere"),
        without("no term", job(), "/spec/term/duration"),
        with("too short a term", job(), "/spec/term/duration", "9s"),
        with("a start at once", job(), "/spec/startWithin", "59s"),
        with("a start of days", job(), "/spec/startWithin", "25h"),
        with("a start in days", job(), "/spec/startWithin", "1d"),
        with(
            "another architecture",
            job(),
            "/spec/placement/architectures/0",
            "riscv64",
        ),
        with("root by number", job(), "/spec/workload/job/runAsUser", 0),
        with(
            "a session that is not root",
            session(),
            "/spec/workload/session/runAsUser",
            1000,
        ),
        with("more than a year", job(), "/spec/term/duration", "8785h"),
        with("a term that overflows", job(), "/spec/term/duration", "9999999h"),
        with("a term in days", job(), "/spec/term/duration", "2d"),
        with("a term in fractions", job(), "/spec/term/duration", "1.5h"),
        with("a term backwards", job(), "/spec/term/duration", "-2h"),
        with("a term without a unit", job(), "/spec/term/duration", "7200"),
        with("a term as a number", job(), "/spec/term/duration", 7200),
        with("a term in ISO 8601", job(), "/spec/term/duration", "PT2H"),
    ]
}

/// What runs.
fn workload() -> Vec<Row> {
    let ports: Vec<Value> = (0..17)
        .map(|n| json!({"name": format!("p{n}"), "port": 8000 + n}))
        .collect();
    let keys = vec!["ssh-ed25519 AAAA"; 17];
    let path = "/spec/workload/session/sshKeys/0";
    vec![
        without("no workload", job(), "/spec/workload/job").named("spec.workload"),
        with(
            "two workloads",
            job(),
            "/spec/workload/session",
            json!({"image": "busybox"}),
        )
        .named("spec.workload"),
        with("a pod", job(), "/spec/workload/podTemplate", json!({"spec": {}})),
        with(
            "a privileged container",
            job(),
            "/spec/workload/job/securityContext",
            json!({"privileged": true}),
        ),
        with(
            "a node of its choice",
            session(),
            "/spec/workload/session/nodeName",
            "node-1",
        ),
        with("a job with ports", job(), "/spec/workload/job/ports", json!([])),
        without(
            "a service without ports",
            service(),
            "/spec/workload/service/ports",
        ),
        with(
            "a service with no ports",
            service(),
            "/spec/workload/service/ports",
            json!([]),
        ),
        with("too many ports", session(), "/spec/workload/session/ports", ports),
        with(
            "a port's name twice",
            service(),
            "/spec/workload/service/ports/1/name",
            "api",
        )
        .named("spec.workload.service.ports"),
        with(
            "a port twice",
            session(),
            "/spec/workload/session/ports/1/port",
            65_520,
        )
        .named("spec.workload.session.ports"),
        with(
            "a token in traffic that the gateway does not decrypt",
            service(),
            "/spec/workload/service/ports/2/access",
            "Token",
        )
        .named("spec.workload.service.ports[2].tls"),
        without(
            "the default access with TLS in the container",
            service(),
            "/spec/workload/service/ports/2/access",
        )
        .named("spec.workload.service.ports[2].tls"),
        with(
            "access for nobody",
            service(),
            "/spec/workload/service/ports/0/access",
            "None",
        ),
        with("port 0", service(), "/spec/workload/service/ports/0/port", 0),
        with(
            "port 65536",
            service(),
            "/spec/workload/service/ports/1/port",
            65_536,
        ),
        with(
            "a port by its service",
            service(),
            "/spec/workload/service/ports/0/port",
            "http",
        ),
        with(
            "a port's name with a capital",
            service(),
            "/spec/workload/service/ports/0/name",
            "API",
        ),
        with(
            "a port's name too long",
            service(),
            "/spec/workload/service/ports/0/name",
            "a-name-of-sixteen",
        ),
        with(
            "a readiness path elsewhere",
            service(),
            "/spec/workload/service/readiness/path",
            "http://169.254.169.254/",
        ),
        with(
            "a readiness path with a header",
            service(),
            "/spec/workload/service/readiness/path",
            "/ HTTP/1.1\r\nHost: x",
        ),
        with("a key that is none", session(), path, "hello"),
        with(
            "a private key",
            session(),
            path,
            "-----BEGIN OPENSSH PRIVATE KEY-----",
        ),
        with(
            "a key with a command",
            session(),
            path,
            "command=\"/bin/sh\" ssh-ed25519 AAAA",
        ),
        with(
            "two keys in one",
            session(),
            path,
            "ssh-ed25519 AAAA a\nssh-ed25519 BBBB b",
        ),
        with(
            "a key that writes to the terminal",
            session(),
            path,
            "ssh-ed25519 AAAA \u{1b}[2J",
        ),
        with("too many keys", session(), "/spec/workload/session/sshKeys", keys),
    ]
}

/// What is kept of a job.
fn output() -> Vec<Row> {
    let path = |what, path: &str| with(what, job(), "/spec/workload/job/output/path", path);
    let keep = |what, time: &str| with(what, job(), "/spec/workload/job/output/keepResultsFor", time);
    let key = |what, key: &str| with(what, job(), "/spec/workload/job/output/recipients/0", key);
    let list = "/spec/workload/job/output/recipients";
    let ssh = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsKLqeplhpW+uObz5dvMgjz1OxfM/XXUB+VHtZ6isGN";
    vec![
        path("results outside the volume", "/root/out"),
        path("results beside the volume", "/root/.cached"),
        path("results out of the volume again", "/root/.cache/../.ssh"),
        path("results at no absolute path", "out"),
        path("results at a path with a space", "/root/.cache/my out"),
        without("results at no path", job(), "/spec/workload/job/output/path"),
        without("results without a volume", job(), "/spec/storage").named("spec.workload.job.output"),
        keep("results for no time", "0s"),
        keep("results for less than a moment", "9s"),
        keep("results for ever", "721h"),
        keep("results in days", "1d"),
        without("results for nobody", job(), list),
        with("results for an empty list", job(), list, json!([])),
        with("results for too many", job(), list, vec![ssh; 9]),
        key("results for a name", "alice"),
        key(
            "results for a private key",
            "AGE-SECRET-KEY-1GFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPYYSJZGFPQ4EGAEX",
        ),
        key(
            "results for a key that can't be encrypted to",
            "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTY=",
        ),
        key(
            "results for half a key",
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHsKLqeplhpW",
        ),
        key("results for two keys in one", &format!("{ssh} a\n{ssh} b")),
        with(
            "results of a service",
            service(),
            "/spec/workload/service/output",
            json!({"path": "/data"}),
        ),
    ]
}

/// The container, its environment and its volume.
fn container() -> Vec<Row> {
    let image = |what, image: &str| with(what, job(), "/spec/workload/job/image", image);
    let name = |what, name: &str| with(what, job(), "/spec/workload/job/env/0/name", name);
    let mount = |what, path: &str| with(what, job(), "/spec/storage/mountPath", path);
    let many: Vec<Value> = (0..65)
        .map(|n| json!({"name": format!("V{n}"), "value": ""}))
        .collect();
    vec![
        image("no image", ""),
        image("an image and a command", "busybox; rm -rf /"),
        image("an image with a line break", "busybox\nimage: evil"),
        image("an image by expansion", "$(cat /etc/passwd)"),
        image("an image's name without end", &"a".repeat(513)),
        with("an argument with NUL", job(), "/spec/workload/job/args/0", "a\0b"),
        with(
            "an argument too long",
            job(),
            "/spec/workload/job/args/0",
            "a".repeat(4097),
        ),
        with(
            "too many arguments",
            job(),
            "/spec/workload/job/args",
            vec!["a"; 65],
        ),
        name("a variable of the driver's", "NVIDIA_VISIBLE_DEVICES"),
        name("a variable of the operator's", "LEASEHOLD_LEASE"),
        name("a variable with a hyphen", "A-B"),
        name("a variable with a value in its name", "A=B"),
        with(
            "a variable twice",
            job(),
            "/spec/workload/job/env/1/name",
            "EPOCHS",
        )
        .named("spec.workload.job.env"),
        with("too many variables", job(), "/spec/workload/job/env", many),
        with(
            "a value with NUL",
            job(),
            "/spec/workload/job/env/0/value",
            "a\0b",
        ),
        with(
            "a value from a Secret",
            job(),
            "/spec/workload/job/env/0/valueFrom",
            json!({}),
        ),
        mount("a volume over the root", "/"),
        mount("a volume over the root by a dot", "/."),
        mount("a volume out of the container", "/data/../../etc"),
        mount("a volume over /proc", "/proc"),
        mount("a volume over /proc by two slashes", "//proc"),
        mount("a volume over /proc by a dot", "/./proc/1"),
        mount("a volume over /sys", "/sys/fs/cgroup"),
        mount("a volume over /dev", "/dev/shm"),
        mount("a volume over the keys", "/etc/leasehold/ssh"),
        mount("a volume at no absolute path", "data"),
        mount("a volume at a path with a colon", "/data:ro"),
        mount("a volume at a path with a line break", "/data\n/etc"),
        mount("a volume at a path that reads backwards", "/da\u{202e}ta"),
    ]
}

/// Prices, wallets, funds.
fn money() -> Vec<Row> {
    let price = |what, price: Value| with(what, job(), "/spec/payment/maxPricePerGpuHour", price);
    let wallet = |what, name: &str| with(what, job(), "/spec/payment/wallet/secretName", name);
    let top_up = |what, pointer: &'static str, value: &str| with(what, job(), pointer, value);
    vec![
        price("a price of nothing", json!("0.00")),
        price("a negative price", json!("-1")),
        price("a price in exponents", json!("1e9")),
        price("a price of 19 decimals", json!("1.0000000000000000001")),
        price("a price of ten digits", json!("1000000000")),
        price("a price with a comma", json!("1,90")),
        price("a price with its token", json!("1.90 USDC")),
        price("a price in other digits", json!("١.٩")),
        price("a price as a number", json!(1.9)),
        price("a price that is none", json!("NaN")),
        price("a price without its zero", json!(".5")),
        without("no price", job(), "/spec/payment/maxPricePerGpuHour"),
        wallet("a Secret elsewhere", "../kube-system/token"),
        wallet("a Secret of two dots", "a..b"),
        wallet("a Secret with capitals", "Wallet"),
        wallet("a Secret without a name", ""),
        with(
            "a key in the clear",
            job(),
            "/spec/payment/wallet/privateKey",
            "0x00",
        ),
        with("no network", job(), "/spec/payment/network", ""),
        with(
            "a network by its URL",
            job(),
            "/spec/payment/network",
            "https://rpc.example.org",
        ),
        top_up("a top-up of less than 10 s", "/spec/payment/topUp/extendBy", "5s"),
        top_up(
            "a top-up by more than a year",
            "/spec/payment/topUp/extendBy",
            "9999h",
        ),
        top_up(
            "a top-up at more than a year",
            "/spec/payment/topUp/whenRunwayBelow",
            "99999h",
        ),
        top_up("a top-up to nothing", "/spec/payment/topUp/totalAtMost", "0"),
        top_up(
            "a top-up of 19 decimals",
            "/spec/payment/topUp/totalAtMost",
            "60.0000000000000000001",
        ),
        without(
            "a top-up without its cap",
            job(),
            "/spec/payment/topUp/totalAtMost",
        ),
        with(
            "another end of the funds",
            job(),
            "/spec/payment/onFundsEnd",
            "Continue",
        ),
        with(
            "a pause without pausing",
            job(),
            "/spec/payment/onFundsEnd",
            "Close",
        )
        .named("spec.payment.pauseFor"),
        with(
            "a pause of more than a year",
            job(),
            "/spec/payment/pauseFor",
            "8785h",
        ),
    ]
}

/// Who reaches in, and what is around the spec.
fn around() -> Vec<Row> {
    let subject = |what, name: &str| with(what, job(), "/spec/access/subjects/0/name", name);
    let many = vec![json!({"kind": "User", "name": "a"}); 17];
    vec![
        subject("the cluster's masters", "system:masters"),
        subject("a name with a line break", "a\nb"),
        subject("a name that reads backwards", "a\u{202e}nimda"),
        with(
            "an account as a subject",
            job(),
            "/spec/access/subjects/0/kind",
            "ServiceAccount",
        ),
        with("too many subjects", job(), "/spec/access/subjects", many),
        with(
            "a token of another namespace",
            job(),
            "/spec/access/tokenSecret/name",
            "other/reach",
        ),
        with(
            "a token in a path",
            job(),
            "/spec/access/tokenSecret/key",
            "../token",
        ),
        without("a token in no Secret", job(), "/spec/access/tokenSecret/name"),
        with("an unknown field", job(), "/spec/colour", "red"),
        with("a field misspelt", bare(), "/spec/payment/topup", json!({})),
        without("no payment", bare(), "/spec/payment"),
        without("no spec", bare(), "/spec"),
        with("a spec that is a list", bare(), "/spec", json!([])),
        with(
            "an annotation of 1 MB",
            job(),
            "/metadata/annotations",
            json!({"note": "a".repeat(1 << 20)}),
        ),
        with(
            "a label with a space",
            job(),
            "/metadata/labels",
            json!({"team": "a b"}),
        ),
        with("a name that is a path", job(), "/metadata/name", "../train"),
        with("a name with a line break", job(), "/metadata/name", "train\n"),
        with("a name without end", job(), "/metadata/name", "a".repeat(254)),
    ]
}
