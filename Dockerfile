# satunet in a container, installed by the same script as anywhere else (scripts/setup).
#
#   docker build -t satunet --build-arg PIP_EXTRA_INDEX_URL=INDEX .       # for a CPU; INDEX: PyTorch's, of CPU builds
#   docker build -t satunet:gpu --build-arg TORCH=torch .                 # for an NVIDIA GPU
#   docker run --rm -u "$(id -u):$(id -g)" -v "$PWD:/data" satunet try
#   docker run --rm -u "$(id -u):$(id -g)" -v "$PWD:/data" --gpus all satunet:gpu predict -i SCANS -o OUT -p liver
#
# Trainings hand batches over in shared memory, of which a container has only 64 MB: start them with --ipc=host.
# docs/serving.md has the call for a server.
# The default build of torch brings CUDA's libraries with it, so that both run on one base image; the driver is the host's.
# It runs as any user. What it fetches and compiles is kept in /cache: give it a volume to keep that for the next run.
ARG BASE=python:3.12-slim
FROM ${BASE}

ARG TORCH=
ARG PIP_EXTRA_INDEX_URL=
ARG EXTRAS=demo,dicom,server

WORKDIR /opt/satunet
COPY LICENSE README.md pyproject.toml setup.py ./
COPY scripts/setup scripts/setup
COPY satunet satunet
COPY planners planners
COPY preprocessing preprocessing
COPY trainers trainers
COPY evaluation evaluation
# On a GPU, Triton compiles a launcher for each of its kernels with the system's C compiler.
RUN if [ -n "${TORCH}" ]; then \
        apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi
RUN PIP_NO_CACHE_DIR=1 TORCH="${TORCH}" EXTRAS="${EXTRAS}" PIP_EXTRA_INDEX_URL="${PIP_EXTRA_INDEX_URL}" bash scripts/setup \
    && .venv/bin/python -m compileall -q satunet planners preprocessing trainers evaluation \
    && mkdir -m 1777 /cache /data

ENV PATH=/opt/satunet/.venv/bin:$PATH \
    HOME=/cache \
    SATUNET_CACHE=/cache/satunet \
    PYTHONUNBUFFERED=1
WORKDIR /data
ENTRYPOINT ["satunet"]
CMD ["--help"]
