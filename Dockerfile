# langext on NVIDIA GPUs. Build: docker build -t langext .
# Run: docker run --gpus all --ipc=host -v $PWD/runs:/langext/runs -v $PWD/cache:/cache langext run pipelines/add_language.yaml
FROM python:3.11-slim

# git: lm-eval asks it for a version. A compiler: DeepSpeed and torch.compile build kernels on first use.
RUN apt-get update && apt-get install -y --no-install-recommends build-essential git openssh-client pdsh && rm -rf /var/lib/apt/lists/*

WORKDIR /langext
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY langext langext
COPY tokenizer_tools tokenizer_tools
COPY pipelines pipelines
COPY configs configs
RUN python -m pip install --no-cache-dir --constraint constraints.txt .

ENV LANGEXT_CACHE=/cache/langext HF_HOME=/cache/huggingface
ENTRYPOINT ["langext"]
CMD ["--help"]
