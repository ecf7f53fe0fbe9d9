# POISE for verl on CUDA GPUs: the environment of launch/env.sh on CUDA's own image, the project in /workspace.
#   docker build -t poise-verl .
#   docker run --gpus all --ipc=host --security-opt seccomp=unconfined -it poise-verl
# --ipc=host: NCCL and the weight sync use /dev/shm. seccomp: the code rewards' sandbox makes namespaces.
# To start from an image that has verl's stack already: --build-arg BASE=verlai/verl:TAG (Python 3.10 to 3.12 in it).
ARG BASE=nvidia/cuda:13.0.1-cudnn-devel-ubuntu24.04
FROM ${BASE}

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
       ca-certificates gcc git iproute2 libnuma1 python3 python3-dev python3-venv util-linux \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /workspace
ENV POISE_VENV=/opt/poise PIP_NO_CACHE_DIR=1

# Dependencies first: they change seldom. An editable install needs no more than these files.
COPY setup.py pyproject.toml README.md LICENSE ./
COPY launch/env.sh launch/constraints-cpu.txt launch/constraints-gpu.txt launch/
RUN bash -c 'source launch/env.sh && poise_env gpu'

COPY . .
ENV PATH=/opt/poise/bin:$PATH VIRTUAL_ENV=/opt/poise
CMD ["bash"]
