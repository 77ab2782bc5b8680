# syntax=docker/dockerfile:1
# langext in a container. For NVIDIA GPUs: docker build -t langext .
# For CPUs alone: docker build -t langext:cpu --build-arg BASE=debian:bookworm-slim --build-arg TORCH_INDEX=<PyTorch's index of CPU builds> .
# Run: mkdir -p runs && docker run --rm --init --gpus all --ipc=host --user $(id -u):$(id -g) -v $PWD/runs:/langext/runs -v langext-cache:/cache langext quickstart
# Without --user the image's own user, 10001, must be allowed to write into what is mounted; Docker makes a folder that is not there as root.
ARG BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04
FROM ${BASE}

# PyTorch's wheels bring their own CUDA libraries, so another base with the driver's interface works too. Empty: those of the usual index.
ARG TORCH_INDEX=""
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="langext" \
      org.opencontainers.image.description="Extend a pretrained language model to a new language without losing the old one" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

ENV DEBIAN_FRONTEND=noninteractive \
    PATH=/opt/langext/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PYTHONDONTWRITEBYTECODE=1

# git: lm-eval asks it for a version. A compiler and Python's headers: torch.compile builds kernels on first use. ssh and pdsh: several machines.
# Versions are those of the base image's release, which BASE pins.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends build-essential git openssh-client pdsh python3 python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv /opt/langext \
 && useradd --uid 10001 --user-group --no-create-home --home-dir /cache langext \
 && mkdir -p /langext/runs /cache \
 && chmod 1777 /langext /langext/runs /cache

# The dependencies before the code: a change of the code leaves this layer, the large one, as it is.
COPY pyproject.toml constraints.txt /src/
RUN python -c "import tomllib; print('\n'.join(tomllib.load(open('/src/pyproject.toml', 'rb'))['project']['dependencies']))" > /src/needs.txt \
 && python -m pip install --constraint /src/constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --requirement /src/needs.txt

COPY . /src/
RUN python -m pip install --no-deps /src && rm -rf /src

USER 10001:10001
WORKDIR /langext
ENV HOME=/cache LANGEXT_CACHE=/cache/langext HF_HOME=/cache/huggingface
VOLUME ["/langext/runs", "/cache"]
HEALTHCHECK --interval=5m --timeout=60s --start-period=60s CMD ["langext", "doctor", "--quiet"]
ENTRYPOINT ["langext"]
CMD ["--help"]
