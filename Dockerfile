# satunet in a container, installed by the same script as anywhere else (scripts/setup).
#
#   docker build -t satunet --build-arg PIP_EXTRA_INDEX_URL=<PyTorch's index of CPU builds> .     for a CPU
#   docker build -t satunet:gpu --build-arg TORCH=torch .                                          for an NVIDIA GPU
#   docker run --rm -u "$(id -u):$(id -g)" -v "$PWD:/data" satunet try
#   docker run --rm -u "$(id -u):$(id -g)" -v "$PWD:/data" --gpus all satunet:gpu predict -i SCANS -o OUT -p liver
#
# The default build of torch brings CUDA's libraries with it, so that both run on one base image; the driver is the host's.
# What satunet fetches is kept in /cache: give it a volume to keep it for the next run.
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
RUN PIP_NO_CACHE_DIR=1 TORCH="${TORCH}" EXTRAS="${EXTRAS}" PIP_EXTRA_INDEX_URL="${PIP_EXTRA_INDEX_URL}" bash scripts/setup \
    && mkdir -m 1777 /cache /data

ENV PATH=/opt/satunet/.venv/bin:$PATH \
    SATUNET_CACHE=/cache \
    MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONUNBUFFERED=1
WORKDIR /data
ENTRYPOINT ["satunet"]
CMD ["--help"]
