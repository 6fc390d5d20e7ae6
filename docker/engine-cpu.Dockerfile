# A real vLLM engine for CPUs with vNPU's plugins. Without VNPU_ETCD_ENDPOINTS it is a stock vLLM.
#   docker build -f docker/engine-cpu.Dockerfile -t vnpu/engine-cpu .
# The lock files are complete, hence --no-deps. They are layers of their own (2.5 GB), built again only when they change.
FROM python:3.11-slim-bookworm AS packages
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# PyTorch's own index of CPU wheels, where the default one has only the CUDA build of torch.
ARG CPU_WHEELS=https://download.pytorch.org/whl/cpu
COPY docker/requirements/runtime.txt docker/requirements/engine.txt /
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-deps -r /runtime.txt \
    && { /opt/venv/bin/pip install --no-deps -r /engine.txt \
        || /opt/venv/bin/pip install --no-deps --extra-index-url "$CPU_WHEELS" -r /engine.txt; }

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
RUN apt-get update \
    && apt-get install -y --no-install-recommends libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --home-dir /tmp vnpu \
    && install -d -o vnpu -g vnpu -m 0700 /run/vnpu \
    && install -d -o vnpu -g vnpu /models
COPY --from=packages /opt/venv /opt/venv
COPY --from=build /dist /dist
RUN /opt/venv/bin/pip install --no-cache-dir --no-deps /dist/*.whl
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp \
    VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1 VLLM_WORKER_MULTIPROC_METHOD=spawn
USER vnpu
WORKDIR /tmp
EXPOSE 8000
ENTRYPOINT ["python", "-m", "vllm.entrypoints.openai.api_server", \
    "--host", "0.0.0.0", "--port", "8000", "--middleware", "engine_patch.gate.Gate"]
CMD ["--help"]
