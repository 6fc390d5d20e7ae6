# etcd from Debian's package (3.4), for compose.test.yaml: where no image can be pulled. Not for production.
FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends etcd-server etcd-client \
    && rm -rf /var/lib/apt/lists/*
EXPOSE 2379
CMD ["etcd"]
