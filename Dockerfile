# The images of operator and agent, for those who build with a container engine:
#   docker build --target operator -t REGISTRY/operator:TAG .
#   docker build --target agent    -t REGISTRY/agent:TAG .
# `cargo xtask image` makes the same without one.

FROM rust:1.95-bookworm AS build
# aws-lc, the TLS library, is built with cmake; protocol definitions are compiled by a crate.
RUN apt-get update && apt-get install -y --no-install-recommends cmake && rm -rf /var/lib/apt/lists/*
WORKDIR /leasehold
COPY . .
# One after the other: together, each would carry what the other asks of the crates they share.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/leasehold/target \
    cargo build --locked --release -p leasehold-operator \
    && cargo build --locked --profile small -p leasehold-agent \
    && mkdir /out && cp target/release/leasehold-operator target/small/leasehold-agent /out/

# The C library, libgcc and certificates, and nothing to run but the one program. The agent must stay dynamically
# linked: it opens the driver's library when it runs.
FROM gcr.io/distroless/cc-debian12 AS operator
COPY --from=build /out/leasehold-operator /usr/bin/
USER 65532:65532
ENTRYPOINT ["/usr/bin/leasehold-operator"]

FROM gcr.io/distroless/cc-debian12 AS agent
COPY --from=build /out/leasehold-agent /usr/bin/
# The kubelet's pod-resources socket is root's; the chart drops all of root's powers.
USER 0:0
ENTRYPOINT ["/usr/bin/leasehold-agent"]
