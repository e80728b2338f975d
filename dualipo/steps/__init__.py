"""The steps of the experiment, one file each, and the graph that joins them.

A step is one function: `step(config, job, *, <input and output ports as paths>) -> Summary`. It knows nothing of DVC,
KFP, MLflow or git. `GRAPH` says which files its ports are in an experiment's folder; the command line, `dualipo run`,
dvc.yaml and the pipeline components are all held to it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from dualipo.config import Config, Models
    from dualipo.quality.evidence import Course
    from dualipo.resume import Chunks

Kind = Literal["data", "clips", "dataset", "critic", "reward", "generator", "gate", "scores", "curves", "page"]
"""What lies at a port: decides how it is tracked."""
BASE = "base"
"""The round before the first: the models as they came."""
GIVEN = "given"
"""In a step's scratch folder: results made elsewhere that it goes on from."""
COURSE = "course"
"""Input port of every step of a round: whether the round before said that this one happens. The engine reads it."""


@dataclass(frozen=True)
class Port:
    """One input or output. `path` is relative to the experiment's folder; {data}, {round} and {prev} are filled in."""

    path: str
    kind: Kind
    model: str | None = None
    """The key of the section `models` that says where it lies; `path` is that key's default."""
    stays: str | None = None
    """Of an output: the input that stands in its place in a round that does not happen; None: a note that says so."""

    def bind(self, data: str, round_name: str, prev: str, models: Models | None = None) -> str:
        if self.model and models:
            chosen: str = getattr(models, self.model)
            return f"{data}/{chosen.removeprefix('data/')}" if chosen.startswith("data/") else chosen
        return self.path.format(data=data, round=round_name, prev=prev)


@dataclass(frozen=True)
class Step:
    name: str
    about: str
    sections: tuple[str, ...]
    """Sections of the configuration that change what this step makes."""
    inputs: dict[str, Port]
    outputs: dict[str, Port]
    scope: Literal["base", "round", "run"] = "round"
    """Runs once before the rounds, once a round, or once after them."""
    gpu: bool = False
    trains: bool = False
    """Trains a model, on several processes or machines where its parameters ask for them."""
    shards: Literal["no", "some", "all"] = "no"
    """Whether some or all of its work on a GPU can be done by shards, its loop of chunks first of all:
    steps/sharding.py."""
    steered: bool = False
    """Its function takes the port `course` too."""

    @property
    def takes(self) -> frozenset[str]:
        """Names of the ports that its function takes."""
        return frozenset([*self.inputs, *self.outputs]) - (frozenset() if self.steered else {COURSE})

    @property
    def function(self) -> Callable[..., Summary]:
        return getattr(importlib.import_module(f"dualipo.steps.{self.name}"), self.name)

    def idle(self, config: Config, course: Course | None) -> bool:
        """Whether a step that trains has nothing to train, so that no machines need be asked for."""
        own = importlib.import_module(f"dualipo.steps.{self.name}")
        return self.steered and own.idle(config, course)

    @property
    def chunks(self) -> Callable[..., Chunks[Any]]:
        """`chunks(config, job, *, <input ports as paths>)`: that loop."""
        return importlib.import_module(f"dualipo.steps.{self.name}").chunks


@dataclass(frozen=True)
class Job:
    """What a step knows of where it runs."""

    round: str
    """Name of the round; `base` before the first."""
    seed: int
    """Root of the step's random streams: derived from the experiment's seed, the round and the step's name."""
    work: Path
    """Scratch folder that outlives a crash: the same inputs and parameters find it again."""


@dataclass
class Summary:
    """What a step says of itself, for people and for tracking. Everything else is in its outputs."""

    metrics: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Named series of (step, value)."""
    pictures: dict[str, Path] = field(default_factory=dict)
    """Contact sheets and sample clips, by name; files inside the outputs or the scratch folder."""
    tags: dict[str, str] = field(default_factory=dict)

    def packed(self) -> dict[str, Any]:
        """As JSON. Floats become strings: a loss that is NaN must be seen, and JSON has no word for it."""
        return {
            "metrics": {name: repr(float(value)) for name, value in self.metrics.items()},
            "curves": {name: [(int(x), repr(float(y))) for x, y in series] for name, series in self.curves.items()},
            "pictures": {name: str(path) for name, path in self.pictures.items()},
            "tags": self.tags,
        }

    @classmethod
    def unpacked(cls, packed: dict[str, Any]) -> Summary:
        return cls(
            metrics={name: float(value) for name, value in packed["metrics"].items()},
            curves={name: [(x, float(y)) for x, y in series] for name, series in packed["curves"].items()},
            pictures={name: Path(path) for name, path in packed["pictures"].items()},
            tags=dict(packed["tags"]),
        )


def _round(name: str, kind: Kind, stays: str | None = None) -> Port:
    return Port(f"runs/{{round}}/{name}", kind, stays=stays)


def _prev(name: str, kind: Kind) -> Port:
    return Port(f"runs/{{prev}}/{name}", kind)


def _base(name: str, kind: Kind) -> Port:
    return Port(f"runs/{BASE}/{name}", kind)


def _data(name: str, kind: Kind = "data") -> Port:
    return Port(f"{{data}}/{name}", kind)


def _model(name: str, kind: Kind) -> Port:
    return Port(f"{{data}}/{name}", kind, model=name)


_STEPS = [
    Step(
        "start",
        "Adopt the base generator and critic, and measure both before the first round.",
        ("experiment", "check_critic", "evaluate"),
        {
            "base_generator": _model("generator", "generator"),
            "base_critic": _model("critic", "critic"),
            "seed_labels": _data("seed"),
            "test_labels": _data("test"),
            "real_clips": _data("real"),
            "benchmark": _data("benchmark.jsonl"),
        },
        {
            "generator": _round("generator", "generator"),
            "critic": _round("critic", "critic"),
            "agreement": _round("agreement.json", "scores"),
            "scores": _round("scores.json", "scores"),
            "benchmark_clips": _round("benchmark_clips", "clips"),
            "held_out": _round("held_out.json", "dataset"),
            "label_profile": _round("label_profile.json", "scores"),
            "settlement": _round("settlement.json", "gate"),
            "next_course": _round("course.json", "gate"),
        },
        scope="base",
        gpu=True,
        shards="some",
    ),
    Step(
        "train_reward",
        "Train a VideoReward on the human seed labels, if one is asked for.",
        ("experiment", "train_reward"),
        {
            "seed_labels": _data("seed"),
            "critic_reference": _model("critic_reference", "critic"),
            "held_out": _round("held_out.json", "dataset"),
        },
        {"reward": _round("reward", "reward")},
        scope="base",
        gpu=True,
    ),
    Step(
        "check_reward",
        "Agreement of trivial critics, the VideoReward and external models' scores with the human test set.",
        ("experiment", "check_critic"),
        {
            "reward": _round("reward", "reward"),
            "seed_labels": _data("seed"),
            "test_labels": _data("test"),
        },
        {"baselines": _round("baselines.json", "scores")},
        scope="base",
        gpu=True,
    ),
    Step(
        "prompts",
        "Draw the round's prompts from the structured space, clear of every held-out prompt.",
        ("experiment", "prompts"),
        {"test_labels": _data("test"), "benchmark": _data("benchmark.jsonl")},
        {"prompts": _round("prompts.jsonl", "dataset"), "audit": _round("prompts_audit.json", "scores")},
    ),
    Step(
        "generate",
        "Sample candidates for every prompt from the incumbent generator.",
        ("experiment", "generate", "flow_nrg"),
        {"prompts": _round("prompts.jsonl", "dataset"), "generator": _prev("generator", "generator")},
        {"candidates": _round("candidates", "clips")},
        gpu=True,
        shards="all",
    ),
    Step(
        "label",
        "Judge the candidates with the incumbent critic: vote over reasoning paths, swap, filter by certainty.",
        ("experiment", "label"),
        {
            "candidates": _round("candidates", "clips"),
            "critic": _prev("critic", "critic"),
            "critic_reference": _model("critic_reference", "critic"),
        },
        {"labels": _round("labels", "dataset")},
        gpu=True,
        shards="all",
    ),
    Step(
        "check_labels",
        "Great Expectations on the prompts and the pseudo-labels.",
        ("check_labels", "label", "prompts"),
        {
            "prompts": _round("prompts.jsonl", "dataset"),
            "candidates": _round("candidates", "clips"),
            "labels": _round("labels", "dataset"),
            "seed_labels": _data("seed"),
            "previous_profile": _prev("label_profile.json", "scores"),
        },
        {
            "gate": _round("label_gate", "gate"),
            "label_profile": _round("label_profile.json", "scores", stays="previous_profile"),
        },
    ),
    Step(
        "train_critic",
        "Refine the critic on human seed labels and kept pseudo-labels (SRPO).",
        ("experiment", "train_critic"),
        {
            "candidates": _round("candidates", "clips"),
            "labels": _round("labels", "dataset"),
            "seed_labels": _data("seed"),
            "critic": _prev("critic", "critic"),
            "held_out": _base("held_out.json", "dataset"),
        },
        {"candidate": _round("critic_candidate", "critic"), "curves": _round("critic_curves.csv", "curves")},
        gpu=True,
        trains=True,
        steered=True,
    ),
    Step(
        "check_critic",
        "Agreement of the critic candidate with the human test set, and its gate.",
        ("experiment", "check_critic", "label"),
        {
            "candidate": _round("critic_candidate", "critic"),
            "incumbent_agreement": _prev("agreement.json", "scores"),
            "test_labels": _data("test"),
            "held_out": _base("held_out.json", "dataset"),
            "baselines": _base("baselines.json", "scores"),
        },
        {"agreement": _round("critic_candidate_agreement.json", "scores"), "gate": _round("critic_gate", "gate")},
        gpu=True,
    ),
    Step(
        "promote_critic",
        "Hand on the critic candidate if every gate holds, else the incumbent.",
        (),
        {
            "candidate": _round("critic_candidate", "critic"),
            "candidate_agreement": _round("critic_candidate_agreement.json", "scores"),
            "incumbent": _prev("critic", "critic"),
            "incumbent_agreement": _prev("agreement.json", "scores"),
            "label_gate": _round("label_gate", "gate"),
            "critic_gate": _round("critic_gate", "gate"),
        },
        {
            "critic": _round("accepted_critic", "critic", stays="incumbent"),
            "agreement": _round("accepted_agreement.json", "scores", stays="incumbent_agreement"),
            "decision": _round("critic_decision.json", "gate"),
        },
    ),
    Step(
        "prefer",
        "Score the candidates with the accepted critic or a VideoReward and keep each prompt's best and worst.",
        ("experiment", "label", "prefer", "latent_reward"),
        {
            "candidates": _round("candidates", "clips"),
            "critic": _round("accepted_critic", "critic"),
            "reward": _base("reward", "reward"),
        },
        {"preferences": _round("preferences", "dataset"), "gate": _round("preference_gate", "gate")},
        gpu=True,
        shards="all",
    ),
    Step(
        "align",
        "Align the generator with the preferences (Diffusion-DPO or Diffusion-KTO).",
        ("experiment", "latent_reward", "align"),
        {
            "preferences": _round("preferences", "dataset"),
            "candidates": _round("candidates", "clips"),
            "real_clips": _data("real"),
            "generator": _prev("generator", "generator"),
            "base_generator": _model("generator", "generator"),
            "held_out": _base("held_out.json", "dataset"),
        },
        {"candidate": _round("generator_candidate", "generator"), "curves": _round("align_curves.csv", "curves")},
        gpu=True,
        trains=True,
    ),
    Step(
        "evaluate",
        "Benchmark the generator candidate on held-out prompts.",
        ("experiment", "evaluate", "flow_nrg"),
        {"candidate": _round("generator_candidate", "generator"), "benchmark": _data("benchmark.jsonl")},
        {
            "scores": _round("generator_candidate_scores.json", "scores"),
            "benchmark_clips": _round("benchmark_clips", "clips"),
        },
        gpu=True,
        shards="all",
    ),
    Step(
        "promote_generator",
        "Hand on the generator candidate if its gates hold and its benchmark does not degrade, else the incumbent.",
        ("promote_generator", "prefer", "check_critic"),
        {
            "candidate": _round("generator_candidate", "generator"),
            "candidate_scores": _round("generator_candidate_scores.json", "scores"),
            "incumbent": _prev("generator", "generator"),
            "incumbent_scores": _prev("scores.json", "scores"),
            "label_gate": _round("label_gate", "gate"),
            "preferences": _round("preferences", "dataset"),
            "preference_gate": _round("preference_gate", "gate"),
            "baselines": _base("baselines.json", "scores"),
            "former_settlement": _prev("settlement.json", "gate"),
        },
        {
            "generator": _round("generator", "generator", stays="incumbent"),
            "scores": _round("scores.json", "scores", stays="incumbent_scores"),
            "decision": _round("generator_decision.json", "gate"),
        },
    ),
    Step(
        "settle",
        "Roll the critic back where the benchmark fell after its update, and say whether another round is worth its "
        "cost.",
        ("settle", "train_critic", "align"),
        {
            "critic_decision": _round("critic_decision.json", "gate"),
            "generator_decision": _round("generator_decision.json", "gate"),
            "accepted_critic": _round("accepted_critic", "critic"),
            "accepted_agreement": _round("accepted_agreement.json", "scores"),
            "former_critic": _prev("critic", "critic"),
            "former_agreement": _prev("agreement.json", "scores"),
            "scores": _round("scores.json", "scores"),
            "preferences": _round("preferences", "dataset"),
            "critic_curves": _round("critic_curves.csv", "curves"),
            "align_curves": _round("align_curves.csv", "curves"),
            "former_settlement": _prev("settlement.json", "gate"),
        },
        {
            "critic": _round("critic", "critic", stays="former_critic"),
            "agreement": _round("agreement.json", "scores", stays="former_agreement"),
            "settlement": _round("settlement.json", "gate", stays="former_settlement"),
            "next_course": _round("course.json", "gate", stays=COURSE),
        },
        steered=True,
    ),
    Step(
        "report",
        "One self-contained page of the whole run.",
        (
            "experiment",
            "models",
            "rounds",
            "prompts",
            "generate",
            "label",
            "check_labels",
            "train_critic",
            "train_reward",
            "check_critic",
            "prefer",
            "latent_reward",
            "align",
            "flow_nrg",
            "evaluate",
            "promote_generator",
            "settle",
        ),
        {"runs": Port("runs", "data")},
        {"page": Port("report/index.html", "page")},
        scope="run",
    ),
]
_STEPS = [
    replace(step, inputs=step.inputs | {COURSE: _prev("course.json", "gate")}) if step.scope == "round" else step
    for step in _STEPS
]
GRAPH: dict[str, Step] = {step.name: step for step in _STEPS}
HANDED_ON = tuple(
    dict.fromkeys(
        port.path.removeprefix("runs/{prev}/")
        for step in _STEPS
        for port in step.inputs.values()
        if port.path.startswith("runs/{prev}/")
    )
)
"""Names of the files and folders that a round hands on to the next."""


def steps_of(scope: str) -> list[Step]:
    return [step for step in _STEPS if step.scope == scope]


def derive_seed(root: int, *names: Any) -> int:
    """A 63-bit seed for a named random stream: equal names give equal streams, different ones independent streams."""
    import hashlib

    text = "/".join(str(part) for part in (root, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
