# The web page on a CPU. The steps are scripts, which also run without Docker: scripts/install.sh and docker/.
#   docker compose up --build        or        docker build -t siimcovid . && docker run -p 127.0.0.1:5000:5000 siimcovid
FROM python:3.11-slim-bookworm AS installed
WORKDIR /src
COPY pyproject.toml requirements.lock README.md ./
COPY scripts/install.sh scripts/
COPY utils utils
# --build-arg TORCH_INDEX=… names an index with torch's CPU wheels, gigabytes smaller than the default ones
ARG TORCH_INDEX=
RUN PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 scripts/install.sh /opt/siimcovid demo,dicom-sr,web
COPY docker docker

# --build-arg DEMO=0 leaves the demo weights out, for who mounts their own.
FROM installed AS demo
COPY notebooks notebooks
ARG DEMO=1
RUN if [ "$DEMO" = 1 ]; then docker/demo-weights.sh /opt/siimcovid /demo; else mkdir /demo; fi

FROM installed
COPY --from=demo /demo /demo
RUN chmod -R a+rX /demo && useradd --uid 10001 --create-home siimcovid
USER 10001
# what libraries want to write at import goes where a read-only container can write
ENV MPLCONFIGDIR=/tmp/matplotlib YOLO_CONFIG_DIR=/tmp YOLOV5_CONFIG_DIR=/tmp NUMBA_CACHE_DIR=/tmp/numba PYTHONUNBUFFERED=1
EXPOSE 5000
HEALTHCHECK --start-period=60s --interval=30s --timeout=5s \
  CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:5000/healthz', timeout=4)"]
ENTRYPOINT ["docker/serve.sh", "/opt/siimcovid", "--host", "0.0.0.0"]
