# The coordinator (scheduler, gateway, admin API) and, in the same image, the node daemon: it carries native/_native.
#   docker build -f docker/coordinator.Dockerfile -t vnpu/coordinator .
# The lock files are complete, hence --no-deps. They are layers of their own, built again only when they change.
FROM python:3.11-slim-bookworm AS packages
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY docker/requirements/runtime.txt /
RUN python -m venv /opt/venv && /opt/venv/bin/pip install --no-deps -r /runtime.txt

FROM python:3.11-slim-bookworm AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3-dev \
    && rm -rf /var/lib/apt/lists/*
COPY docker/requirements/build.txt /
RUN python -m venv /opt/build && /opt/build/bin/pip install --no-deps -r /build.txt
ENV PATH=/opt/build/bin:$PATH
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY native native
COPY transfer transfer
COPY engine_patch engine_patch
COPY coordinator coordinator
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /dist .

FROM python:3.11-slim-bookworm
# One user id for daemon and engines: the daemon serves its own uid only, over a socket of mode 0600.
RUN useradd --uid 10001 --no-create-home --home-dir /tmp vnpu \
    && install -d -o vnpu -g vnpu -m 0700 /run/vnpu /var/lib/vnpu /pages \
    && install -d -o vnpu -g vnpu /models
COPY --from=packages /opt/venv /opt/venv
COPY --from=build /dist /dist
RUN /opt/venv/bin/pip install --no-cache-dir --no-deps /dist/*.whl
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp
USER vnpu
WORKDIR /tmp
EXPOSE 8080 8081
CMD ["python", "-m", "coordinator", "--help"]
