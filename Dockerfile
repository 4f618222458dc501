# An image with the library and its commands, from Docker Hub and the package registry alone.
#
#   docker build -t lm .
#   docker build -t lm --build-arg EXTRAS=quickstart,serve,cuda13 .        # NVIDIA GPUs; run it with --gpus all
#   docker run --rm -it -v "$PWD:/work" lm train --config=quickstart --workdir=runs/quickstart
#   docker run --rm -it -v "$PWD:/work" -p 8000:8000 -e LM_SERVE_TOKEN lm serve --from=runs/quickstart --host=0.0.0.0
#
# Runs, and what is prepared for them in .cache, are in the folder that is mounted at /work. docs/clusters.md says more.
FROM python:3.11-slim

ARG EXTRAS=quickstart,convert,serve
# The package's version, which git knows and the files that are copied here do not.
ARG VERSION=0.0

WORKDIR /src
COPY setup.py pyproject.toml MANIFEST.in README.md LICENSE ./
COPY lm lm
COPY configs configs
# hadolint ignore=DL3013
RUN SETUPTOOLS_SCM_PRETEND_VERSION_FOR_LM="$VERSION" pip install --no-cache-dir ".[$EXTRAS]"

ENV XDG_CACHE_HOME=/work/.cache
WORKDIR /work
ENTRYPOINT ["lm"]
