# Three images on one base, none of which runs as root:
#
#   docker build -t vaeserve .                   cpu, the default: the service, no torch, no compiler
#   docker build -t vaeserve:gpu --target gpu .  the same with onnxruntime for CUDA; the driver comes from the host
#   docker build -t vaeserve:train --target train .
#
#   docker run --rm -p 127.0.0.1:8000:8000 vaeserve                                            the shipped model
#   docker run --rm -p 127.0.0.1:8000:8000 -v ./bundles:/bundles:ro vaeserve faces hands       of ./bundles
#
# docker-compose.yml builds them on a base that is named by its digest, and runs them with as little as they need.
ARG PYTHON=python:3.11-slim

# Environments are made here and copied whole. They hold no pip: the base's own writes into them.
FROM ${PYTHON} AS builder
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/vaeserve
WORKDIR /src

# A wheel of service/ alone, so that the other packages, and commands that could not run, are not in the image.
FROM builder AS service
COPY pyproject.toml README.md LICENSE ./
COPY service service
RUN python -m pip wheel --no-deps --wheel-dir /wheels . \
 && python -m pip --python /opt/vaeserve/bin/python install --no-deps /wheels/*.whl \
 && rm /opt/vaeserve/bin/vae-train /opt/vaeserve/bin/vae-export

FROM builder AS builder-cpu
COPY locks/cpu.txt locks/traces.txt locks/
RUN python -m pip --python /opt/vaeserve/bin/python install -r locks/cpu.txt -r locks/traces.txt
COPY --from=service /opt/vaeserve /opt/vaeserve

FROM builder AS builder-gpu
COPY locks/gpu.txt locks/traces.txt locks/
RUN python -m pip --python /opt/vaeserve/bin/python install -r locks/gpu.txt -r locks/traces.txt
COPY --from=service /opt/vaeserve /opt/vaeserve

# Export proves a bundle with the engine that will serve it, so that training brings that too.
FROM builder AS builder-train
COPY locks/cpu.txt locks/train.txt locks/
RUN python -m pip --python /opt/vaeserve/bin/python install torch==2.13.0 \
 && python -m pip --python /opt/vaeserve/bin/python install -r locks/train.txt -r locks/cpu.txt
COPY pyproject.toml README.md LICENSE ./
COPY service service
COPY model model
COPY export export
RUN python -m pip --python /opt/vaeserve/bin/python install --no-deps .

# Byte code was compiled when the builder installed; at run time nothing is written, so that the root file system may be
# read-only (docker run --read-only), without a /tmp. Several workers count in memory that they share through /dev/shm.
# Uid 1000 is the first user of most machines, so that mounted folders are readable, and ./runs is writable.
FROM ${PYTHON} AS runtime
RUN useradd --uid 1000 --user-group --no-create-home --shell /usr/sbin/nologin vaeserve && mkdir /bundles \
 && python -m pip uninstall --yes --quiet pip setuptools wheel
# Python finds no module in the folder that it is started in, which is one of the user's. onnxruntime since 1.29 reports
# sessions to its maker, on Linux too, unless told not to.
ENV PATH=/opt/vaeserve/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PYTHONSAFEPATH=1 ORT_DISABLE_TELEMETRY=1
USER 1000:1000

# Whoever runs it may have no home; matplotlib and torch keep what they compute again in /tmp.
FROM runtime AS train
ENV HOME=/tmp
COPY --from=builder-train /opt/vaeserve /opt/vaeserve
WORKDIR /train
ENTRYPOINT ["vae-train"]

FROM runtime AS server
ENV VAE_HOST=0.0.0.0 VAE_PORT=8000
WORKDIR /bundles
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s CMD ["python", "-c", "import http.client, os; \
c = http.client.HTTPConnection('127.0.0.1', int(os.environ['VAE_PORT']), timeout=3); \
c.request('GET', '/health/ready'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["vae-serve"]

FROM server AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=builder-gpu /opt/vaeserve /opt/vaeserve

FROM server AS cpu
COPY --from=builder-cpu /opt/vaeserve /opt/vaeserve
