"""The one way to the API server."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from dualipo.errors import UserError

if TYPE_CHECKING:
    from kubernetes import client


def connect(context: str | None = None) -> client.ApiClient:
    """A client for the pod's own cluster, else for the kubeconfig's. Raises UserError where there is neither.

    It repeats nothing: whoever asks knows which requests bear it.
    """
    try:
        from kubernetes import client, config
    except ImportError:
        raise UserError("the kubernetes client is not installed; pip install 'dualipo[cluster]'") from None
    configuration = client.Configuration()
    inside = "KUBERNETES_SERVICE_HOST" in os.environ and context is None
    try:
        if inside:
            config.load_incluster_config(client_configuration=configuration)
        else:
            # by name: the client itself reads the variable only once, when it is imported.
            file = os.environ.get("KUBECONFIG")
            config.load_kube_config(config_file=file, context=context, client_configuration=configuration)
    except config.ConfigException as error:
        remedy = "mount its service account's token" if inside else "log in to the cluster, or set KUBECONFIG"
        raise UserError(f"no cluster to talk to: {' '.join(str(error).split())}; {remedy}") from None
    configuration.retries = False
    return client.ApiClient(configuration)
