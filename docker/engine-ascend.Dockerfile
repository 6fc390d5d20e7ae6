# A vLLM engine for Ascend NPUs: vNPU's package on top of the public vllm-ascend image.
#   docker build -f docker/engine-ascend.Dockerfile -t vnpu/engine-ascend .
#
# Never built on that image or run: this project's tests have neither it nor an NPU. The file is linted, and its steps
# were run once on a stand-in (python:3.11-slim-bookworm with g++). With VNPU_ETCD_ENDPOINTS and VNPU_DRIVER=ascend the
# engine joins its node (docs/memory.md, "Engines on a device"), which nobody has seen happen yet. Without them the image
# is the plain vllm-ascend.
ARG VLLM_ASCEND=quay.io/ascend/vllm-ascend:v0.23.0

FROM ${VLLM_ASCEND} AS build
WORKDIR /src
COPY docker/requirements/build.txt docker/requirements/
RUN python3 -m venv /opt/build && /opt/build/bin/pip install --no-cache-dir --no-deps -r docker/requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY native native
COPY transfer transfer
COPY engine_patch engine_patch
COPY coordinator coordinator
RUN PATH=/opt/build/bin:$PATH /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist .

FROM ${VLLM_ASCEND}
COPY --from=build /dist /dist
# The image's own packages stay as vllm-ascend pins them: only what it lacks is added.
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
