# The coordinator (scheduler, gateway, admin API) and, in the same image, the node daemon: it carries native/_native.
#   docker build -f docker/coordinator.Dockerfile -t vnpu/coordinator .
FROM python:3.11-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3-dev \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# Pins first: this layer is built again only when they change. The lists are complete, hence --no-deps.
COPY docker/requirements/build.txt docker/requirements/runtime.txt docker/requirements/
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --no-deps -r docker/requirements/build.txt \
    && pip install --no-deps -r docker/requirements/runtime.txt
COPY pyproject.toml README.md LICENSE ./
COPY native native
COPY transfer transfer
COPY engine_patch engine_patch
COPY coordinator coordinator
RUN PATH=/opt/build/bin:$PATH /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
    && pip install --no-deps /dist/*.whl

FROM python:3.11-slim-bookworm
# One user id for daemon and engines: the daemon serves its own uid only, over a socket of mode 0600.
RUN useradd --uid 10001 --no-create-home --home-dir /tmp vnpu \
    && install -d -o vnpu -g vnpu -m 0700 /run/vnpu /var/lib/vnpu /pages \
    && install -d -o vnpu -g vnpu /models
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp
USER vnpu
WORKDIR /tmp
EXPOSE 8080 8081
CMD ["python", "-m", "coordinator", "--help"]
