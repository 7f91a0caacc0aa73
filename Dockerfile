# A static binary in an empty image. `dev` needs nothing else; `run --capture nftables|iptables` calls the host's nft or
# iptables, so give the container those tools (or another base) for these modes.
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

FROM scratch
COPY --from=build /src/target/dist/viaduct /viaduct
COPY --from=build --chown=65532:65532 /rootfs /
COPY config/demo /manifests
USER 65532:65532
ENV VIADUCT_ADMIN_SOCKET=/run/viaduct/admin.sock VIADUCT_DATA_DIR=/var/lib/viaduct
ENTRYPOINT ["/viaduct"]
CMD ["dev", "/manifests"]
