# syntax=docker/dockerfile:1
# One image for every part of a farm: CLI, migration, workers, Flower.
#   docker build -t farm .                              CLI, CPU worker, preview engine
#   docker build -t farm-cuda --build-arg EXTRAS=cuda . the model engines on NVIDIA GPUs too
# BASE may be another image with Python 3.11 or newer, for example one with the Ascend toolkit for EXTRAS=npu.
ARG BASE=python:3.12-slim-bookworm

FROM ${BASE} AS build
ARG EXTRAS=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python3 -m venv /opt/farm
WORKDIR /source
# The locked packages change less often than the code, so they are a layer of their own.
COPY requirements.lock ./
RUN /opt/farm/bin/pip install --require-hashes --only-binary :all: -r requirements.lock
COPY LICENSE THIRD_PARTY.md README.md pyproject.toml ./
COPY configs configs
COPY migrations migrations
COPY farm farm
COPY workers workers
RUN /opt/farm/bin/pip install --no-deps --no-build-isolation . \
    && if [ -n "$EXTRAS" ]; then /opt/farm/bin/pip install "talking-head-farm[$EXTRAS] @ file:///source"; fi
# Nothing is fetched at run time: the preview engine's face models come with the image.
RUN cd / && /opt/farm/bin/python -m workers.engines.preview.face_models --fetch --into /opt/farm/face-models

FROM ${BASE}
LABEL org.opencontainers.image.title="farm" \
      org.opencontainers.image.description="Batch rendering of talking-head video" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN groupadd --gid 10001 farm \
    && useradd --uid 10001 --gid farm --no-create-home --home-dir /data --shell /usr/sbin/nologin farm \
    && mkdir -p /data /films /inputs /cards && chown farm:farm /data /films /cards && chmod 1777 /cards
COPY --from=build /opt/farm /opt/farm
ENV PATH=/opt/farm/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    FARM_HOME=/data \
    FARM_OUTPUT_DIR=/films \
    FARM_FACE_MODELS=/opt/farm/face-models
# What a container with NVIDIA cards gets of their driver; unnamed, it would be compute and utility alone.  compute is
# CUDA, utility is nvidia-smi, by whose UUIDs cards are locked, and video is the encoder unit (film.codec = "h264_nvenc").
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
USER farm
WORKDIR /inputs
VOLUME ["/data", "/films"]
ENTRYPOINT ["farm"]
CMD ["--help"]
