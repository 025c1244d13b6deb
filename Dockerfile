# docker build -t voiceserver .                           CPU, without torch
# docker build -t voiceserver --build-arg TORCH=cu126 .   CUDA (run with --gpus all)
# docker run --rm -p 8765:8765 --stop-timeout 15 --ulimit nofile=65536 voiceserver
# With server.tls_cert the health check needs another command: it asks without TLS.
FROM python:3.12-slim AS build
ARG TORCH=
WORKDIR /src
RUN python -m venv /opt/voiceserver
ENV PATH=/opt/voiceserver/bin:$PATH
RUN test -z "$TORCH" || pip install --no-cache-dir --index-url "https://download.pytorch.org/whl/$TORCH" torch==2.13.0
COPY pyproject.toml README.md LICENSE ./
COPY voiceserver voiceserver
COPY workers workers
COPY clients clients
RUN pip install --no-cache-dir ".[all${TORCH:+,torch}]"

FROM python:3.12-slim
COPY --from=build /opt/voiceserver /opt/voiceserver
RUN useradd --system --create-home --uid 10001 voiceserver
USER voiceserver
WORKDIR /home/voiceserver
ENV PATH=/opt/voiceserver/bin:$PATH PYTHONUNBUFFERED=1 VOICESERVER_SERVER__HOST=0.0.0.0
EXPOSE 8765
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ.get('VOICESERVER_SERVER__PORT', '8765') + '/healthz', timeout=2)"]
STOPSIGNAL SIGTERM
CMD ["voiceserver", "serve"]
