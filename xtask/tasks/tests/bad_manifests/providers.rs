//! What a provider, or a market's owner, may not write.

use serde_json::{Value, json};

use crate::{
    good::{bare_pool, network, node, pool, provider, providers_network},
    row::{Row, with, without},
};

pub(crate) fn rows() -> Vec<Row> {
    [pools(), providers_and_nodes(), networks()]
        .into_iter()
        .flatten()
        .collect()
}

fn pools() -> Vec<Row> {
    let price = |what, price: &str| with(what, bare_pool(), "/spec/pricePerGpuHour", price);
    let hours = |what, pointer: &'static str, value: &str| with(what, pool(), pointer, value);
    let many: Value = (0..17).map(|n| (format!("label-{n}"), json!("a"))).collect();
    vec![
        price("a price of nothing", "0"),
        price("a negative price", "-0.1"),
        price("a price in exponents", "1e9"),
        price("a price of 19 decimals", "0.0000000000000000001"),
        price("a price with its unit", "1.85/h"),
        without("no price", bare_pool(), "/spec/pricePerGpuHour"),
        with("an unknown class", pool(), "/spec/class", "NVIDIA H100 80GB HBM3"),
        with(
            "a class that is a list",
            pool(),
            "/spec/class",
            json!(["h100-80g-sxm"]),
        ),
        with("another's namespace", pool(), "/spec/provider", "../rhine-west"),
        with("terms of more than a year", pool(), "/spec/maxDuration", "8785h"),
        with("terms of nothing", pool(), "/spec/maxDuration", "0s"),
        with("terms in days", pool(), "/spec/maxDuration", "30d"),
        with("a pause of more than a year", pool(), "/spec/maxPause", "99999h"),
        with("results for a year", pool(), "/spec/maxKeepResultsFor", "8760h"),
        with("results in days", pool(), "/spec/maxKeepResultsFor", "1d"),
        with("a start of days", pool(), "/spec/maxStartWithin", "25h"),
        with("a start at once", pool(), "/spec/maxStartWithin", "30s"),
        with(
            "user namespaces now and then",
            pool(),
            "/spec/userNamespaces",
            "Sometimes",
        ),
        with(
            "memory for each GPU in GB",
            pool(),
            "/spec/maxPerGpu/memory",
            "128GB",
        ),
        with("a taint without a key", pool(), "/spec/tolerations/0/key", ""),
        with("another effect", pool(), "/spec/tolerations/0/effect", "Evict"),
        with("volumes of nothing", pool(), "/spec/storage/maxSize", "0"),
        with(
            "volumes beyond 63 bits",
            pool(),
            "/spec/storage/maxSize",
            "999999999Pi",
        ),
        with(
            "volumes of a class that is a path",
            pool(),
            "/spec/storage/className",
            "../local",
        ),
        with(
            "a runtime with a space",
            pool(),
            "/spec/runtimeClassName",
            "nvidia cdi",
        ),
        with("withdrawals in each block", pool(), "/spec/withdraw/every", "1s"),
        with(
            "withdrawals of less than nothing",
            pool(),
            "/spec/withdraw/above",
            "-1",
        ),
        with("ports of the host", pool(), "/spec/exposure", "HostPort"),
        hours("an unknown day", "/spec/hours/0/days/0", "Monday"),
        hours("a span that ends before it begins", "/spec/hours/0/to", "06:00"),
        hours("an hour of 24", "/spec/hours/0/from", "24:00"),
        hours("an hour without its zero", "/spec/hours/0/from", "8:00"),
        with(
            "too many spans",
            pool(),
            "/spec/hours",
            vec![json!({"from": "00:00", "to": "24:00"}); 15],
        ),
        with("too many labels", pool(), "/spec/nodeSelector", many),
        with(
            "a label with a space",
            pool(),
            "/spec/nodeSelector/quiet",
            "very quiet",
        ),
        with(
            "a label that is none",
            pool(),
            "/spec/nodeSelector",
            json!({"a b\n": "c"}),
        ),
        with("an unknown field", bare_pool(), "/spec/discount", "10%"),
        with("a name with a dot", bare_pool(), "/metadata/name", "h100.a"),
    ]
}

fn providers_and_nodes() -> Vec<Row> {
    let payee = |what, address: String| with(what, provider(), "/spec/payee", address);
    vec![
        payee("an address of 19 bytes", format!("0x{}", "1".repeat(38))),
        payee("an address of 21 bytes", format!("0x{}", "1".repeat(42))),
        payee("an address without 0x", "1".repeat(40)),
        payee("an address of other letters", format!("0x{}", "g".repeat(40))),
        payee("an address by its name", "vitalik.eth".into()),
        payee("an address and a line break", format!("0x{}\n", "1".repeat(40))),
        payee("nobody's address", format!("0x{}", "0".repeat(40))),
        with("an address as a number", provider(), "/spec/payee", 0x1234),
        with(
            "nobody's key",
            provider(),
            "/spec/controller",
            format!("0x{}", "0".repeat(40)),
        ),
        without("no key", provider(), "/spec/controller"),
        with("a region in two words", provider(), "/spec/region", "EU West"),
        with(
            "a region with a line break",
            provider(),
            "/spec/region",
            "eu-west\n",
        ),
        with("a region without end", provider(), "/spec/region", "a".repeat(64)),
        with("a reputation of its own", provider(), "/spec/standing", "good"),
        with("a name with a dot", provider(), "/metadata/name", "rhine.west"),
        with(
            "a name too long for a namespace",
            provider(),
            "/metadata/name",
            "a".repeat(55),
        ),
        with("an unknown class", node(), "/spec/classOverride", "H100!"),
        with("perhaps for sale", node(), "/spec/sell", "maybe"),
    ]
}

fn networks() -> Vec<Row> {
    let chain = |what, id: Value| with(what, network(), "/spec/chainId", id);
    let token = |what, address: String| with(what, network(), "/spec/token/address", address);
    let symbol = |what, symbol: &str| with(what, network(), "/spec/token/symbol", symbol);
    let url = |what, url: &str| with(what, providers_network(), "/spec/rpcUrl", url);
    vec![
        chain("chain 0", json!(0)),
        chain("chain -1", json!(-1)),
        chain(
            "a chain beyond what JSON counts",
            json!(9_007_199_254_740_992_i64),
        ),
        chain("a chain by its name", json!("base")),
        chain("a chain in hexadecimal", json!("0x2105")),
        token("a token at nobody's address", format!("0x{}", "0".repeat(40))),
        token("a token by its symbol", "USDC".into()),
        with(
            "nobody's escrow",
            network(),
            "/spec/escrow",
            format!("0x{}", "0".repeat(40)),
        ),
        with(
            "an escrow that is a transaction",
            network(),
            "/spec/escrow",
            format!("0x{}", "1".repeat(64)),
        ),
        with(
            "nobody's market",
            network(),
            "/spec/marketId",
            format!("0x{}", "0".repeat(40)),
        ),
        with("19 decimals", network(), "/spec/token/decimals", 19),
        with("less than no decimals", network(), "/spec/token/decimals", -1),
        symbol("no symbol", ""),
        symbol("a symbol without end", &"U".repeat(17)),
        symbol("a symbol that writes to the terminal", "USDC\u{1b}[31m"),
        symbol("a symbol that reads backwards", "\u{202e}CDSU"),
        url("another scheme", "file:///etc/passwd"),
        url("no host", "https://"),
        url("a URL with a header in it", "https://rpc.example.org/\r\nX: y"),
        with(
            "two endpoints",
            network(),
            "/spec/rpcUrl",
            "https://rpc.example.org",
        )
        .named("spec.rpcUrl"),
        without("no endpoint", network(), "/spec/rpcSecretName").named("spec.rpcUrl"),
        with(
            "a Secret elsewhere",
            network(),
            "/spec/rpcSecretName",
            "../../default/x",
        ),
        with("another finality", network(), "/spec/provisionAt", "Pending"),
        with(
            "a grace of more than a week",
            network(),
            "/spec/outageGrace",
            "169h",
        ),
        with("a grace in minutes alone", network(), "/spec/outageGrace", 10),
        with("no fee", network(), "/spec/limits/feePerGasGwei", 0),
        with(
            "a fee without end",
            network(),
            "/spec/limits/feePerGasGwei",
            1_000_001,
        ),
        with(
            "too little gas for a lease",
            network(),
            "/spec/limits/gasPerTransaction",
            499_999,
        ),
        with(
            "more gas than a block",
            network(),
            "/spec/limits/gasPerTransaction",
            30_000_001,
        ),
        with("no spend", network(), "/spec/limits/nativePerDay", "0.00"),
        with("a negative spend", network(), "/spec/limits/nativePerDay", "-1"),
        with(
            "a spend that is a number",
            network(),
            "/spec/limits/nativePerDay",
            1,
        ),
        with(
            "blocks that may be of no age",
            network(),
            "/spec/maxBlockAge",
            "0s",
        ),
        with("a release at no finality", network(), "/spec/releaseAt", "Never"),
        with("blocks of any age", network(), "/spec/maxBlockAge", "2h"),
    ]
}
