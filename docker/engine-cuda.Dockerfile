# A vLLM engine for NVIDIA GPUs: vNPU's package on top of the public vLLM image.
#   docker build -f docker/engine-cuda.Dockerfile -t vnpu/engine-cuda .
#
# Never built on that image or run: this project's tests have neither it nor a GPU. The file is linted. With
# VNPU_ETCD_ENDPOINTS and VNPU_DRIVER=cuda the engine joins its node (docs/memory.md, "Engines on a device"), which nobody
# has seen happen yet. Without them the image is the plain vLLM.
ARG VLLM=docker.io/vllm/vllm-openai:v0.32.0

FROM ${VLLM} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY docker/requirements/build.txt docker/requirements/
RUN python3 -m venv /opt/build && /opt/build/bin/pip install --no-cache-dir --no-deps -r docker/requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY native native
COPY transfer transfer
COPY engine_patch engine_patch
COPY coordinator coordinator
RUN PATH=/opt/build/bin:$PATH /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist .

FROM ${VLLM}
COPY --from=build /dist /dist
# The image's own packages stay as vLLM pins them: only what it lacks is added.
RUN python3 -m pip install --no-cache-dir --upgrade-strategy only-if-needed /dist/*.whl \
    && rm -r /dist \
    && useradd --uid 10001 --no-create-home --home-dir /tmp vnpu \
    && install -d -o vnpu -g vnpu -m 0700 /run/vnpu
ENV PYTHONUNBUFFERED=1 HOME=/tmp VLLM_NO_USAGE_STATS=1
USER vnpu
WORKDIR /tmp
EXPOSE 8000
ENTRYPOINT ["python3", "-m", "vllm.entrypoints.openai.api_server", \
    "--host", "0.0.0.0", "--port", "8000", "--middleware", "engine_patch.gate.Gate"]
CMD ["--help"]
