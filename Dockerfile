# syntax=docker/dockerfile:1
# The service as an image. docs/docker.md says how to use it.
#
#   docker build --target cpu  --tag billhook:cpu .
#   docker build --target cuda --tag billhook:cuda .
#
# The base is pinned by its tag, which gets security updates. For a build that is the same for ever, give a digest:
# --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:…
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# The virtual environment, made with the pip of the base and without one of its own: nothing is installed in it later.
FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/billhook
WORKDIR /src
COPY constraints.txt ./

# torch first and by itself, so that nothing else drags in another build
FROM build AS build-cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN --mount=type=cache,target=/root/.cache/pip python -m pip --python /opt/billhook install \
    "$(sed -n '/^torch==/p' constraints.txt)" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip python -m pip --python /opt/billhook install \
    -c constraints.txt '.[cpu]' ./client

# the wheel of torch on PyPI is the one for CUDA, and brings CUDA's libraries with it; the driver is the host's
FROM build AS build-cuda
ARG TORCH_INDEX=
RUN --mount=type=cache,target=/root/.cache/pip python -m pip --python /opt/billhook install \
    "$(sed -n '/^torch==/p' constraints.txt)" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}
COPY . .
RUN --mount=type=cache,target=/root/.cache/pip python -m pip --python /opt/billhook install \
    -c constraints.txt '.[gpu]' ./client

FROM ${PYTHON_IMAGE} AS runtime
RUN groupadd --gid 10001 billhook \
    && useradd --uid 10001 --gid 10001 --home-dir /data --no-create-home --shell /usr/sbin/nologin billhook \
    && install -d -o 10001 -g 10001 -m 0700 /data /artifacts
# PYTHONSAFEPATH: nothing is imported from the folder that a process starts in
ENV PATH=/opt/billhook/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONSAFEPATH=1 \
    HOME=/data \
    BILLHOOK_DATA_DIR=/data
WORKDIR /data
USER 10001:10001
VOLUME ["/data"]
EXPOSE 8470
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --start-interval=2s CMD ["python", "-m", "api.probe"]
# The whole service in one container. It listens on all addresses of the container, which is a network of its own: who
# reaches it is decided by what is published (-p 127.0.0.1:8470:8470), hence --allow-remote.
CMD ["billhook-server", "--host", "0.0.0.0", "--allow-remote", "--log-stderr"]

FROM runtime AS cuda
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-cuda /opt/billhook /opt/billhook

# the last one is what `docker build` makes without --target
FROM runtime AS cpu
COPY --from=build-cpu /opt/billhook /opt/billhook
