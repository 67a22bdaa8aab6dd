//! Generates the kubelet's pod-resources API. protox compiles the definition, so no `protoc` is needed.

use anyhow::Context;

fn main() -> anyhow::Result<()> {
    let definition = "proto/podresources.proto";
    println!("cargo:rerun-if-changed={definition}");
    let compiled = protox::compile([definition], ["proto"]).context("compile the pod-resources API")?;
    tonic_prost_build::configure()
        .compile_fds(compiled)
        .context("generate the pod-resources API")
}
