# VBench apart from everything else: it pins transformers 4.33.2 and numpy below 2. x86-64 and Python 3.11 at most.
#   docker build --platform linux/amd64 -f k8s/images/vbench.Dockerfile -t dualipo-vbench:0.1.0 .
# Some of the models that it downloads when it runs may not be used commercially, AMT (motion smoothness) among them:
# read their licences before you publish or sell on its scores. Object class, multiple objects, colour and spatial
# relationship need detectron2, which is not on PyPI and is not in here: those four dimensions can't be measured.
ARG PYTHON=docker.io/library/python:3.11.14-slim-bookworm
FROM ${PYTHON}
# OpenCV wants libGL and libglib; some of VBench's dependencies have no wheels.
RUN apt-get update && apt-get install -y --no-install-recommends build-essential git libgl1 libglib2.0-0 \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 1000 vbench && useradd --uid 1000 --gid 1000 --home-dir /tmp --no-create-home vbench
# Newer setuptools have no pkg_resources, which VBench imports.
RUN pip install --no-cache-dir --disable-pip-version-check 'setuptools==80.9.0' wheel \
 && pip install --no-cache-dir --disable-pip-version-check --no-build-isolation \
        'setuptools==80.9.0' 'vbench==0.1.5' 'transformers==4.33.2' 'numpy<2' \
 && python -c 'import pkg_resources, vbench'
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
WORKDIR /tmp
USER 1000:1000
ENTRYPOINT []
CMD ["python", "-c", "import vbench"]
