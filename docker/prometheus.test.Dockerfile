# Prometheus from Debian's package, for compose.test.yaml: where no image can be pulled. Not for production.
FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends prometheus \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -o nobody -g nogroup /prometheus
USER nobody
EXPOSE 9090
CMD ["prometheus", "--help"]
