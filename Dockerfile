# Images of the operator, the gateway and the agent, for builds with a container engine:
#   docker build --target operator -t REGISTRY/operator:TAG .
#   docker build --target gateway  -t REGISTRY/gateway:TAG .
#   docker build --target agent    -t REGISTRY/agent:TAG .
# `cargo xtask image` builds the same images without a container engine.

FROM rust:1.95-bookworm AS build
# aws-lc, the TLS library, is built with cmake. A crate compiles the protocol definitions.
RUN apt-get update && apt-get install -y --no-install-recommends cmake && rm -rf /var/lib/apt/lists/*
WORKDIR /leasehold
COPY . .
# Separate builds: in a combined build, cargo unifies the features of shared dependencies, and the binaries become larger.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/leasehold/target \
    cargo build --locked --release -p leasehold-operator \
    && cargo build --locked --release -p leasehold-gateway \
    && cargo build --locked --profile small -p leasehold-agent \
    && mkdir /out && cp target/release/leasehold-operator target/release/leasehold-gateway target/small/leasehold-agent /out/

# Contains the C library, libgcc and certificates, and no other programs. The agent must be linked dynamically, because it
# loads the driver's library at run time.
FROM gcr.io/distroless/cc-debian12 AS operator
COPY --from=build /out/leasehold-operator /usr/bin/
USER 65532:65532
ENTRYPOINT ["/usr/bin/leasehold-operator"]

FROM gcr.io/distroless/cc-debian12 AS gateway
COPY --from=build /out/leasehold-gateway /usr/bin/
USER 65532:65532
ENTRYPOINT ["/usr/bin/leasehold-gateway"]

FROM gcr.io/distroless/cc-debian12 AS agent
COPY --from=build /out/leasehold-agent /usr/bin/
# Only root can open the pod-resources socket of the kubelet. The chart drops all capabilities.
USER 0:0
ENTRYPOINT ["/usr/bin/leasehold-agent"]
