# The picker as an image: docker build -t epp . && docker run epp --help
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY requirements/run.txt requirements/run.txt
COPY deploy/image/install.sh deploy/image/install.sh
COPY epp epp
COPY scorers scorers
RUN sh deploy/image/install.sh /opt/epp

FROM python:3.12-slim
LABEL org.opencontainers.image.title="epp" \
      org.opencontainers.image.description="Endpoint picker for LLM inference behind Envoy's external processing filter" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/epp /opt/epp
COPY config /config
# No byte code at run time, no buffering of log lines; nothing is written, so the root file system can be read-only.
ENV PATH=/opt/epp/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# Numeric, so that Kubernetes can verify runAsNonRoot.
USER 65532:65532
# 9002 ext_proc, 9003 gRPC health, 9090 metrics.
EXPOSE 9002 9003 9090
HEALTHCHECK --interval=10s --timeout=2s --start-period=10s \
  CMD ["/opt/epp/bin/python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9090/healthz', timeout=1)"]
# `epp run` is part of the entry point: the Go picker's flags follow the image's name directly.
ENTRYPOINT ["/opt/epp/bin/epp", "run"]
