"""Talks to a Kubeflow Pipelines server: submits a compiled pipeline, follows a run, prints its pods' logs."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dualipo.errors import UserError

TOKEN = "DUALIPO_KFP_TOKEN"
"""Environment variable of a bearer token for the server, where it asks for one."""
ENDED = {"SUCCEEDED": True, "FAILED": False, "CANCELED": False, "SKIPPED": False}
"""States that a run stays in, and whether that is success."""


@dataclass(frozen=True)
class Task:
    name: str
    state: str
    seconds: float | None
    pods: tuple[str, ...]


@dataclass(frozen=True)
class Run:
    id: str
    name: str
    state: str
    error: str
    tasks: tuple[Task, ...]

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def succeeded(self) -> bool:
        return ENDED.get(self.state, False)

    def __str__(self) -> str:
        lines = [f"{self.name} ({self.id}): {self.state}" + (f", {self.error}" if self.error else "")]
        for task in self.tasks:
            took = f" {task.seconds:.0f} s" if task.seconds is not None else ""
            lines.append(f"  {task.state:10} {task.name}{took}")
        return "\n".join(lines)


class Server:
    """A Kubeflow Pipelines API server. Every method raises UserError where it does not answer or refuses."""

    def __init__(self, host: str, namespace: str | None = None):
        import kfp

        self.host, self.namespace = host, namespace
        with warnings.catch_warnings(), self._errors():
            warnings.simplefilter("ignore")
            options = {"namespace": namespace} if namespace else {}
            self.client = kfp.Client(host=host, existing_token=os.environ.get(TOKEN), **options)

    def submit(
        self,
        pipeline: Path,
        experiment: str,
        name: str,
        tags: Mapping[str, str],
        root: str | None = None,
        account: str | None = None,
    ) -> str:
        """Starts a run of a compiled pipeline; returns its id. Tags go into the description: KFP's runs have none.

        `root`: where artifacts go, `account`: the service account of the pods; the server's own where None.
        """
        import kfp_server_api as api

        documents = list(yaml.safe_load_all(pipeline.read_text()))
        spec = documents[0]
        if len(documents) > 1:
            spec = {"pipeline_spec": documents[0], "platform_spec": documents[1]}
        # the SDK prints addresses; what stands on stdout is the run's id
        with self._errors(), contextlib.redirect_stdout(sys.stderr):
            found = self.client.create_experiment(experiment, namespace=self.namespace)
            body = api.V2beta1Run(
                experiment_id=found.experiment_id,
                display_name=name,
                description="\n".join(f"{key}={value}" for key, value in tags.items()),
                pipeline_spec=spec,
                service_account=account,
                runtime_config=api.V2beta1RuntimeConfig(pipeline_root=root) if root else None,
            )
            # the SDK's own run_pipeline knows no description
            return self.client._run_api.run_service_create_run(run=body).run_id

    def run(self, run_id: str) -> Run:
        with self._errors():
            found = self.client.get_run(run_id)
        details = (found.run_details.task_details if found.run_details else None) or []
        error = " ".join((found.error.message or "").split()) if found.error else ""
        tasks = tuple(sorted((_task(detail) for detail in details), key=lambda pair: pair[0]))
        return Run(run_id, found.display_name, str(found.state), error, tuple(task for _, task in tasks))

    def wait(self, run_id: str, timeout: float | None = None, every: float = 10.0) -> Run:
        """Follows a run until it ends; raises UserError after `timeout` seconds (the run goes on)."""
        end = time.monotonic() + timeout if timeout is not None else None
        while not (run := self.run(run_id)).ended:
            if end is not None and time.monotonic() >= end:
                raise UserError(f"{run_id}: still {run.state} after {timeout:g} s; see `dualipo pipeline status`")
            time.sleep(every)
        return run

    def logs(self, run_id: str, task: str | None, namespace: str) -> Iterator[tuple[str, str, str]]:
        """Task, pod and log of each pod of `task`, or of every failed task; Kubernetes is asked for the logs."""
        from kubernetes import client
        from urllib3.exceptions import HTTPError

        from dualipo.cluster.connection import connect

        run = self.run(run_id)
        wanted = [found for found in run.tasks if (found.name == task if task else found.state == "FAILED")]
        if task and not wanted:
            raise UserError(f"{run_id}: no task {task!r}; there are {', '.join(sorted({t.name for t in run.tasks}))}")
        core = client.CoreV1Api(connect())
        try:
            for found in wanted:
                for pod in found.pods:
                    yield found.name, pod, core.read_namespaced_pod_log(pod, namespace, container="main")
        except (client.ApiException, HTTPError) as error:
            reason = getattr(error, "reason", None) or error
            raise UserError(f"Kubernetes gives no logs in namespace {namespace}: {reason}") from error

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        from kfp_server_api import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except ApiException as error:
            body = " ".join((error.body or "").split())[:300]
            raise UserError(
                f"Kubeflow Pipelines at {self.host}: {error.status} {error.reason} {body}".rstrip()
            ) from error
        except HTTPError as error:
            raise UserError(
                f"Kubeflow Pipelines at {self.host} does not answer ({type(error).__name__}); check --host, or forward "
                "its port: kubectl -n kubeflow port-forward svc/ml-pipeline-ui 8080:80"
            ) from error


def _task(detail: Any) -> tuple[Any, Task]:
    """A task, after what to sort it by."""
    begin, end = detail.start_time or detail.create_time, detail.end_time
    seconds = (end - begin).total_seconds() if begin and end and end >= begin else None
    pods = [child.pod_name for child in detail.child_tasks or () if child.pod_name]
    if detail.pod_name:
        pods.insert(0, detail.pod_name)
    name = detail.display_name or detail.task_id
    return (begin.timestamp() if begin else 0.0, name), Task(name, str(detail.state), seconds, tuple(pods))
