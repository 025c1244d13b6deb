# docker build -t voiceserver .                           CPU, without torch
# docker build -t voiceserver --build-arg TORCH=cu126 .   CUDA (run with --gpus all)
# docker run --init --rm -p 8765:8765 --stop-timeout 25 --ulimit nofile=65536 voiceserver
#   --init: a process 1 that buries what workers and engines leave behind; the server does that for its own only.
#   It serves without keys on all addresses of the container until auth.keys_file is set, and warns of it.
FROM python:3.12-slim AS build
ARG TORCH=
WORKDIR /src
RUN python -m venv /opt/voiceserver
ENV PATH=/opt/voiceserver/bin:$PATH
# What changes seldom comes first: a change of the sources installs no dependency again.
COPY deploy/requirements.txt ./
RUN pip install --no-cache-dir --require-hashes -r requirements.txt
RUN test -z "$TORCH" || pip install --no-cache-dir --index-url "https://download.pytorch.org/whl/$TORCH" torch==2.13.0
COPY pyproject.toml README.md LICENSE ./
COPY voiceserver voiceserver
COPY workers workers
COPY clients clients
RUN pip install --no-cache-dir --no-deps .

FROM python:3.12-slim
LABEL org.opencontainers.image.title="voiceserver" \
      org.opencontainers.image.description="A realtime voice-agent server: streaming, batching workers, explicit backpressure" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/voiceserver /opt/voiceserver
RUN useradd --system --create-home --uid 10001 voiceserver
USER voiceserver
WORKDIR /home/voiceserver
ENV PATH=/opt/voiceserver/bin:$PATH PYTHONUNBUFFERED=1 VOICESERVER_SERVER__HOST=0.0.0.0
EXPOSE 8765
# Ready, and not only alive: every stage has a worker, and no drain is under way. It follows the settings in the environment.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["voiceserver", "ready"]
STOPSIGNAL SIGTERM
CMD ["voiceserver", "serve"]
