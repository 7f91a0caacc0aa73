# Two images of one static binary, for x86-64 and arm64 (`docker buildx build --platform linux/amd64,linux/arm64`):
#   node    the binary with nft and iptables, for config/kubernetes; `--target node`
#   dev     the binary alone, as an ordinary user; the default
FROM rust:1-alpine AS build
RUN apk add --no-cache musl-dev
WORKDIR /src
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY benches benches
COPY tests tests
RUN RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --profile dist --bin viaduct

# Folders that an ordinary user may write to: an empty image has none.
RUN mkdir -p /rootfs/run/viaduct /rootfs/var/lib/viaduct /rootfs/manifests

FROM alpine:3 AS node
RUN apk add --no-cache iptables nftables
COPY --from=build /src/target/dist/viaduct /usr/local/bin/viaduct
ENTRYPOINT ["/usr/local/bin/viaduct"]
CMD ["run"]

FROM scratch AS dev
COPY --from=build /src/target/dist/viaduct /viaduct
COPY --from=build --chown=65532:65532 /rootfs /
COPY config/demo /manifests
USER 65532:65532
ENV VIADUCT_ADMIN_SOCKET=/run/viaduct/admin.sock VIADUCT_DATA_DIR=/var/lib/viaduct
ENTRYPOINT ["/viaduct"]
CMD ["dev", "/manifests"]
