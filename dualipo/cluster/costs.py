"""What manifests ask of a cluster: CPU, memory and storage of each workload, added up."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dualipo.cluster.render import Object, Template, of_kind, templates, title

_UNITS = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12} | {
    f"{letter}i": 1024.0**power for power, letter in enumerate("KMGT", 1)
}
GIB = 2.0**30


def quantity(text: str | int | float) -> float:
    """A Kubernetes quantity as a number: `250m` is 0.25, `1Gi` is 2**30."""
    match = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", str(text))
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{text!r} is no quantity")
    return float(match[1]) * _UNITS[match[2]]


@dataclass(frozen=True)
class Cost:
    name: str
    pods: int
    cpu: float
    """Cores requested, all pods together."""
    cpu_limit: float
    memory: float
    """Bytes requested, all pods together."""
    memory_limit: float
    storage: float
    """Bytes of persistent volumes."""
    lasting: bool
    """Whether it runs for good."""


def costs(objects: list[Object]) -> list[Cost]:
    """One row for each workload, then one for each volume that belongs to none."""
    rows = [_workload(template) for template in templates(objects)]
    for claim in of_kind(objects, "PersistentVolumeClaim"):
        size = quantity(claim["spec"]["resources"]["requests"]["storage"])
        rows.append(Cost(title(claim), 0, 0, 0, 0, 0, size, True))
    return rows


def _workload(template: Template) -> Cost:
    def asked(kind: str, resource: str) -> float:
        """Init containers run one after another, then the others all together; the larger counts."""

        def of(container: Object) -> float:
            return quantity(container["resources"][kind][resource])

        inits = [of(container) for container in template.spec.get("initContainers", [])]
        return template.replicas * max([sum(map(of, template.spec["containers"])), *inits])

    claims = template.owner["spec"].get("volumeClaimTemplates", []) if template.owner["kind"] == "StatefulSet" else []
    storage = template.replicas * sum(quantity(claim["spec"]["resources"]["requests"]["storage"]) for claim in claims)
    return Cost(
        template.name,
        template.replicas,
        cpu=asked("requests", "cpu"),
        cpu_limit=asked("limits", "cpu"),
        memory=asked("requests", "memory"),
        memory_limit=asked("limits", "memory"),
        storage=storage,
        lasting=template.lasting,
    )


def format_costs(objects: list[Object]) -> str:
    """A Markdown table; the total counts what runs for good."""
    rows = costs(objects)
    lines = ["| workload | pods | CPU, cores (limit) | memory, GiB (limit) | storage, GiB |", "|---|---|---|---|---|"]
    for row in rows:
        lines.append(_line(row.name if row.lasting else f"{row.name}, now and then", row))
    lasting = [row for row in rows if row.lasting]
    total = Cost(
        "**all that runs for good**",
        pods=sum(row.pods for row in lasting),
        cpu=sum(row.cpu for row in lasting),
        cpu_limit=sum(row.cpu_limit for row in lasting),
        memory=sum(row.memory for row in lasting),
        memory_limit=sum(row.memory_limit for row in lasting),
        storage=sum(row.storage for row in lasting),
        lasting=True,
    )
    lines.append(_line(total.name, total))
    for content in of_kind(objects, "ResourceQuota"):
        hard = content["spec"]["hard"]
        shown = ", ".join(f"{key} {hard[key]}" for key in hard if str(hard[key]) != "0")
        lines += ["", f"The quota of namespace {content['metadata']['namespace']}: {shown}."]
    return "\n".join(lines)


def _line(name: str, row: Cost) -> str:
    cpu = f"{row.cpu:g} ({row.cpu_limit:g})" if row.pods else ""
    memory = f"{row.memory / GIB:g} ({row.memory_limit / GIB:g})" if row.pods else ""
    return f"| {name} | {row.pods or ''} | {cpu} | {memory} | {f'{row.storage / GIB:g}' if row.storage else ''} |"
