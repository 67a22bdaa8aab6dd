//! Generates the device plugin API. protox compiles the definition, so no `protoc` is needed.

use anyhow::Context;

fn main() -> anyhow::Result<()> {
    let definition = "proto/deviceplugin.proto";
    println!("cargo:rerun-if-changed={definition}");
    let compiled = protox::compile([definition], ["proto"]).context("compile the device plugin API")?;
    tonic_prost_build::configure()
        .compile_fds(compiled)
        .context("generate the device plugin API")
}
