# The MLflow server. The project's own image has no psycopg2, boto3 or authorisation by Kubernetes.
#   docker build -f k8s/images/mlflow.Dockerfile -t dualipo-mlflow:0.1.0 k8s/images
ARG PYTHON=docker.io/library/python:3.12.12-slim-bookworm
FROM ${PYTHON}
COPY mlflow-requirements.txt /tmp/
RUN pip install --no-cache-dir --disable-pip-version-check --only-binary :all: -r /tmp/mlflow-requirements.txt \
 && rm /tmp/mlflow-requirements.txt \
 && groupadd --gid 1000 mlflow && useradd --uid 1000 --gid 1000 --home-dir /tmp --no-create-home mlflow
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp MLFLOW_DISABLE_TELEMETRY=true
WORKDIR /tmp
USER 1000:1000
EXPOSE 5000
CMD ["mlflow", "--version"]
