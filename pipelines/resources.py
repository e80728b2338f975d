"""What a task asks of the cluster: the one place that knows Kubernetes' side of KFP."""

from __future__ import annotations

from kfp import dsl, kubernetes

from dualipo.steps import Step
from pipelines.build import MODELS, SCRATCH, Build

USER = 1000
"""Of the image (k8s/images/Dockerfile); namespaces with restricted pods want it said."""
BACKOFF = "30s"
"""Before the first retry; doubled before each further one."""


def dress(task: dsl.PipelineTask, build: Build, step: Step | None, gpus: bool = True) -> dsl.PipelineTask:
    """Gives the task its image, its environment and what `resources` says of `step`; None is one of the pipeline's own
    small tasks, which need no GPU. Without `gpus` no other asks for one either."""
    request = build.config.resources.of(step.name if step else None)
    task.set_container_image(build.image)
    kubernetes.set_security_context(task, run_as_user=USER, run_as_group=USER, run_as_non_root=True)
    for name, value in build.told().items():
        # KFP's cache key holds plain environment variables (since 2.18), and no annotations.
        key = f"dualipo.io/{name.partition('_')[2].lower()}"
        kubernetes.add_pod_annotation(task, key, value)
        kubernetes.use_field_path_as_env(task, name, f"metadata.annotations['{key}']")
    for name, value in (request.env or {}).items():
        task.set_env_variable(name, value)
    for secret, keys in (request.secrets or {}).items():
        kubernetes.use_secret_as_env(task, secret, keys)
    if request.retries:
        task.set_retry(request.retries, backoff_duration=BACKOFF, backoff_factor=2, backoff_max_duration="600s")
    if request.timeout:
        kubernetes.set_timeout(task, request.timeout)
    if request.cpu:
        # without a limit of its own a pod gets its namespace's default one, which may be less than the request.
        task.set_cpu_request(request.cpu).set_cpu_limit(request.cpu)
    if request.memory:
        task.set_memory_request(request.memory).set_memory_limit(request.memory)
    if request.shm:
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=request.shm)
    if request.scratch:
        kubernetes.mount_pvc(task, request.scratch, SCRATCH)
        task.set_env_variable("DUALIPO_SCRATCH", SCRATCH)
    if request.model_cache:
        kubernetes.mount_pvc(task, request.model_cache, MODELS)
        task.set_env_variable("HF_HOME", MODELS)
    if step and gpus and request.gpus:
        task.set_accelerator_type(request.gpu or "nvidia.com/gpu").set_accelerator_limit(request.gpus)
        # nodes are chosen, and taints tolerated, for the sake of GPUs.
        for key, value in (request.node_selector or {}).items():
            kubernetes.add_node_selector(task, key, value)
        for toleration in request.tolerations or ():
            kubernetes.add_toleration(task, toleration.key, toleration.operator, toleration.value, toleration.effect)
    return task
