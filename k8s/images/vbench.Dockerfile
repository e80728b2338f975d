# The main image with a second Python environment in /opt/vbench that has VBench: it pins transformers 4.33.2 and numpy
# below 2. x86-64 and Python 3.11 at most. Name this image in `resources.image` of runs that measure VBench.
#   docker build --platform linux/amd64 -f k8s/images/vbench.Dockerfile -t dualipo-vbench:0.1.0 k8s/images
# Some of the models that VBench downloads when it runs may not be used commercially, AMT (motion smoothness) among them:
# read their licences before you publish or sell on its scores. Object class, multiple objects, colour and spatial
# relationship need detectron2, which is not on PyPI and is not in here: those four dimensions can't be measured.
ARG PYTHON=docker.io/library/python:3.11.14-slim-bookworm
ARG DUALIPO=dualipo:0.1.0
FROM ${PYTHON} AS build
# OpenCV wants libGL and libglib; some of VBench's dependencies have no wheels.
RUN apt-get update && apt-get install -y --no-install-recommends build-essential git libgl1 libglib2.0-0 \
 && rm -rf /var/lib/apt/lists/*
# Newer setuptools have no pkg_resources, which VBench imports.
RUN python -m venv /opt/vbench \
 && /opt/vbench/bin/pip install --no-cache-dir --disable-pip-version-check 'setuptools==80.9.0' wheel \
 && /opt/vbench/bin/pip install --no-cache-dir --disable-pip-version-check --no-build-isolation \
        'setuptools==80.9.0' 'vbench==0.1.5' 'transformers==4.33.2' 'numpy<2' \
 && /opt/vbench/bin/python -c 'import pkg_resources, vbench'

FROM ${DUALIPO}
USER root
# VBench fetches its models with wget and unzip.
RUN apt-get update && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 unzip wget \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/vbench /opt/vbench
USER 1000:1000
