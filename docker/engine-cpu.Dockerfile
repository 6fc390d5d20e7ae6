# A real vLLM engine for CPUs with vNPU's plugins. Without VNPU_ETCD_ENDPOINTS it is a stock vLLM.
#   docker build -f docker/engine-cpu.Dockerfile -t vnpu/engine-cpu .
FROM python:3.11-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3-dev \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
# Pins first: these layers (2.5 GB) are built again only when they change. The lists are complete, hence --no-deps.
COPY docker/requirements/build.txt docker/requirements/runtime.txt docker/requirements/
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install --no-deps -r docker/requirements/build.txt \
    && pip install --no-deps -r docker/requirements/runtime.txt
COPY docker/requirements/engine.txt docker/requirements/
# PyTorch's own index of CPU wheels, where the default one has only the CUDA build of torch.
ARG CPU_WHEELS=https://download.pytorch.org/whl/cpu
RUN pip install --no-deps -r docker/requirements/engine.txt \
    || pip install --no-deps --extra-index-url "$CPU_WHEELS" -r docker/requirements/engine.txt
COPY pyproject.toml README.md LICENSE ./
COPY native native
COPY transfer transfer
COPY engine_patch engine_patch
COPY coordinator coordinator
RUN PATH=/opt/build/bin:$PATH /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
    && pip install --no-deps /dist/*.whl

FROM python:3.11-slim-bookworm
RUN apt-get update \
    && apt-get install -y --no-install-recommends libnuma1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home --home-dir /tmp vnpu \
    && install -d -o vnpu -g vnpu -m 0700 /run/vnpu \
    && install -d -o vnpu -g vnpu /models
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp \
    VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1 VLLM_WORKER_MULTIPROC_METHOD=spawn
USER vnpu
WORKDIR /tmp
EXPOSE 8000
ENTRYPOINT ["python", "-m", "vllm.entrypoints.openai.api_server", \
    "--host", "0.0.0.0", "--port", "8000", "--middleware", "engine_patch.gate.Gate"]
CMD ["--help"]
