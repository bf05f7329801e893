# The predictor. From the repository root: docker build --tag dev.local/text-to-image-predictor:0.1.0 .
FROM python:3.11-slim-bookworm AS dependencies

# Their layer (torch: gigabytes) depends on these two files and on nothing else, so a change of code does not ship it again.
# PyPI's torch brings CUDA 13: nodes need NVIDIA's driver 580 or newer, and a GPU of 2018 (Turing) or newer.
# Signing pictures, exporting traces and models with eyes need packages more (pyproject.toml says which and why):
# docker build --build-arg EXTRAS='c2pa tracing vision' adds 70 MB.
ARG EXTRAS=
WORKDIR /build
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
extras = [p['optional-dependencies'][name] for name in 'predictor $EXTRAS'.split()]; \
print(*p['dependencies'], *sum(extras, []), sep='\n')" > requirements.txt \
 && python -m venv --without-pip /opt/venv \
 && pip --python /opt/venv/bin/python install --no-cache-dir --no-compile \
        --constraint constraints.txt --requirement requirements.txt

# Bytecode that is never checked against its source. The root is read-only: what lacks bytecode is compiled at every start,
# and bytecode that is checked by time is stale after any build that sets all times to one value.
RUN python -m compileall -q -j 0 --invalidation-mode unchecked-hash -x '/tests/|/py312_' /opt/venv/lib


FROM python:3.11-slim-bookworm AS code

COPY predictor /app/predictor
RUN python -m compileall -q --invalidation-mode unchecked-hash /app && chmod -R a+rX,go-w /app


FROM python:3.11-slim-bookworm

LABEL org.opencontainers.image.title="text-to-image predictor" \
      org.opencontainers.image.description="Serves a diffusers text-to-image pipeline from a volume, on KServe's model server"

# --compile needs a C compiler at run time: docker build --build-arg COMPILER=gcc adds 170 MB.
ARG COMPILER=
# Debian's mirrors keep one version at a time: a pinned one is gone with the next security update.
# hadolint ignore=DL3008
RUN if [ -n "$COMPILER" ]; then \
        apt-get update && apt-get install -y --no-install-recommends "$COMPILER" libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi

# The official image comes without the standard library's bytecode.
RUN python -m compileall -q -j 0 --invalidation-mode unchecked-hash -x 'site-packages|dist-packages|/lib2to3/|/test/' \
        "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"

COPY --from=dependencies /opt/venv /opt/venv
COPY --from=code /app /app

# Whatever wants to write a cache finds /tmp, the one place that is writable under a read-only root.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    HF_HOME=/tmp/huggingface \
    HF_HUB_OFFLINE=1 \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

WORKDIR /app
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["python", "-m", "predictor"]
