# docker build -t spa . && docker run --rm --gpus all -v "$PWD":/data spa refine3d --i particles.star ...
FROM nvidia/cuda:12.6.3-runtime-ubuntu24.04

# CuPy compiles its own kernels as they are used: cuda-cudart-dev has the headers
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 python3-venv cuda-cudart-dev-12-6 \
 && rm -rf /var/lib/apt/lists/*

COPY . /src
RUN python3 -m venv /opt/spa \
 && /opt/spa/bin/pip install --no-cache-dir '/src[cuda12]' \
 && rm -rf /src \
 && useradd --create-home spa \
 && mkdir /data && chown spa /data

ENV PATH=/opt/spa/bin:$PATH NUMBA_CACHE_DIR=/tmp/numba CUPY_CACHE_DIR=/tmp/cupy
USER spa
WORKDIR /data
ENTRYPOINT ["spa"]
