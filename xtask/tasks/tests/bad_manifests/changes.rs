//! Changes of what is there: those that are refused, and beside them those that are not.

use serde_json::json;

use crate::{
    good::{bare, job, network, pool, providers_network, service, session},
    row::{Row, with, without},
};

pub(crate) fn refused() -> Vec<Row> {
    [required(), optional(), networks()]
        .into_iter()
        .flatten()
        .collect()
}

/// What a lease was made with.
fn required() -> Vec<Row> {
    let image = "/spec/workload/job/image";
    vec![
        with("more nodes", job(), "/spec/nodes", 3),
        with("a later start", job(), "/spec/startWithin", "2h"),
        with("fewer nodes", job(), "/spec/nodes", 1),
        without("nodes by default", job(), "/spec/nodes"),
        with("more GPUs", job(), "/spec/perNode/gpus", 2).named("spec.perNode"),
        with(
            "the same memory in another unit",
            job(),
            "/spec/perNode/memory",
            "16384Mi",
        )
        .named("spec.perNode"),
        without("scratch by default", job(), "/spec/perNode/ephemeralStorage").named("spec.perNode"),
        with("another image", job(), image, "ghcr.io/acme/train:2").named("spec.workload"),
        with("another argument", job(), "/spec/workload/job/args/0", "other").named("spec.workload"),
        with(
            "another variable",
            job(),
            "/spec/workload/job/env/2",
            json!({"name": "LR", "value": "1"}),
        )
        .named("spec.workload"),
        with(
            "results for longer",
            job(),
            "/spec/workload/job/output/keepResultsFor",
            "25h",
        )
        .named("spec.workload"),
        without("results no longer kept", job(), "/spec/workload/job/output").named("spec.workload"),
        with(
            "a port that is open to everybody",
            service(),
            "/spec/workload/service/ports/0/access",
            "Public",
        )
        .named("spec.workload"),
        with(
            "another port",
            service(),
            "/spec/workload/service/ports/3",
            json!({"name": "new", "port": 1}),
        )
        .named("spec.workload"),
        with(
            "another key",
            session(),
            "/spec/workload/session/sshKeys/1",
            "ssh-ed25519 AAAA",
        )
        .named("spec.workload"),
        with(
            "another kind of workload",
            bare(),
            "/spec/workload",
            json!({"session": {"image": "busybox"}}),
        ),
        with("a shorter term", job(), "/spec/term/duration", "1h"),
        with(
            "a shorter term in another unit",
            job(),
            "/spec/term/duration",
            "119m",
        ),
        with("another network", job(), "/spec/payment/network", "base"),
        with(
            "another wallet",
            job(),
            "/spec/payment/wallet/secretName",
            "other",
        )
        .named("spec.payment.wallet"),
        with(
            "a higher price",
            job(),
            "/spec/payment/maxPricePerGpuHour",
            "1.91",
        ),
        with("a lower price", job(), "/spec/payment/maxPricePerGpuHour", "1"),
        with(
            "another end of the funds",
            job(),
            "/spec/payment/onFundsEnd",
            "Close",
        )
        .nor("/spec/payment/pauseFor"),
    ]
}

/// What may be left out, and may not come, go or change later: taking it away and adding it again is no way round.
fn optional() -> Vec<Row> {
    let subjects = json!({"subjects": [{"kind": "User", "name": "b"}]});
    let storage = json!({"size": "1Gi", "mountPath": "/data"});
    vec![
        without("GPUs no longer chosen", job(), "/spec/gpu"),
        with("GPUs chosen", bare(), "/spec/gpu", json!({"memory": "24G"})),
        with("other GPUs", job(), "/spec/gpu/classes/0", "a100-80g-pcie").named("spec.gpu"),
        without("a floor taken away", job(), "/spec/gpu/memory").named("spec.gpu"),
        without("a place no longer chosen", job(), "/spec/placement"),
        with(
            "a place chosen",
            bare(),
            "/spec/placement",
            json!({"regions": ["eu-west"]}),
        ),
        with("another place", job(), "/spec/placement/spread", "Any").named("spec.placement"),
        without("a volume taken away", job(), "/spec/storage"),
        with("a volume added", bare(), "/spec/storage", storage),
        with("a larger volume", job(), "/spec/storage/size", "21Gi").named("spec.storage"),
        without("access taken away", job(), "/spec/access"),
        with("access given", bare(), "/spec/access", subjects),
        with(
            "access of another",
            job(),
            "/spec/access/subjects/0/name",
            "team-b",
        )
        .named("spec.access"),
        with(
            "access for one more",
            job(),
            "/spec/access/subjects/1",
            json!({"kind": "User", "name": "b"}),
        )
        .named("spec.access"),
        without("a pause taken away", job(), "/spec/payment/pauseFor"),
        with("a longer pause", job(), "/spec/payment/pauseFor", "25h"),
        with("a pause added", bare(), "/spec/payment/pauseFor", "1h")
            .and("/spec/payment/onFundsEnd", "Pause"),
    ]
}

fn networks() -> Vec<Row> {
    let address = || format!("0x{}", "9".repeat(40));
    vec![
        with("another chain", network(), "/spec/chainId", 1),
        with("another escrow", network(), "/spec/escrow", address()),
        with("another token", network(), "/spec/token/address", address()).named("spec.token"),
        with("other decimals", network(), "/spec/token/decimals", 18).named("spec.token"),
        with("another market", network(), "/spec/marketId", address()),
        without("no market any more", network(), "/spec/marketId"),
    ]
}

/// Nothing of these is refused; their field is not asked for.
pub(crate) fn allowed() -> Vec<Row> {
    vec![
        with("a longer term", job(), "/spec/term/duration", "121m"),
        with(
            "a token for the ports",
            bare(),
            "/spec/access",
            json!({"tokenSecret": {"name": "reach"}}),
        ),
        with(
            "another token for the ports",
            job(),
            "/spec/access/tokenSecret/name",
            "other",
        ),
        without(
            "no token for the ports any more",
            job(),
            "/spec/access/tokenSecret",
        ),
        without("no top-up any more", job(), "/spec/payment/topUp"),
        with("another top-up", job(), "/spec/payment/topUp/totalAtMost", "61"),
        with(
            "a top-up added",
            bare(),
            "/spec/payment/topUp",
            json!({"whenRunwayBelow": "1m", "extendBy": "1h", "totalAtMost": "6"}),
        ),
        with(
            "a note",
            session(),
            "/metadata/annotations",
            json!({"note": "mine"}),
        ),
        with("another price of a pool", pool(), "/spec/pricePerGpuHour", "1.95"),
        without("a pool without hours", pool(), "/spec/hours"),
        with(
            "another endpoint",
            providers_network(),
            "/spec/rpcUrl",
            "http://127.0.0.1:8545",
        ),
        with(
            "a market named",
            providers_network(),
            "/spec/marketId",
            format!("0x{}", "4".repeat(40)),
        ),
    ]
}
