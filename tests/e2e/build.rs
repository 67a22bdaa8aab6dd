//! Generates the kubelet's pod-resources API, the server's side of it, from the definition that the agent is built from.

use anyhow::Context;

fn main() -> anyhow::Result<()> {
    let folder = "../../agent/proto";
    let definition = "podresources.proto";
    println!("cargo:rerun-if-changed={folder}/{definition}");
    let compiled = protox::compile([definition], [folder]).context("compile the pod-resources API")?;
    tonic_prost_build::configure()
        .build_client(false)
        .compile_fds(compiled)
        .context("generate the pod-resources API")
}
