"""Renders the gathered run as one HTML file that needs nothing else: styles, script, charts and clips lie inside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualipo.evaluation.reading import FROZEN_MAXES, in_reading_order
from dualipo.records import DIMENSIONS
from dualipo.report.charts import Line, Mark, histogram, interval_chart, line_chart, number

if TYPE_CHECKING:
    import jinja2

TITLES = {
    "semantic": "Semantic consistency",
    "motion": "Motion smoothness",
    "faithfulness": "Video faithfulness",
    "overall": "Overall",
    "label_gate": "Prompts and pseudo-labels",
    "critic_gate": "Critic agreement",
    "preference_gate": "Preferences",
}
Curve = tuple[tuple[str, ...], str, str]
"""Names of its series, its title, and what it tells."""
CURVES: dict[str, list[Curve]] = {
    "align_curves": [
        (("loss",), "Total loss", "Preference term plus both diffusion-loss terms."),
        (("dpo_loss",), "DPO loss", "ln 2 = 0.693 where model and reference agree; falls."),
        (("kto_loss",), "KTO loss", "Falls as desirable clips gain and undesirable ones lose likelihood."),
        (("flow_dpo_loss",), "Flow-DPO loss", "ln 2 = 0.693 where model and reference agree; falls."),
        (("rwr_loss",), "RWR loss", "Velocity or noise error, weighted by the exponential of the reward; falls."),
        (("sft_loss",), "SFT loss", "Diffusion loss on winners; falls."),
        (("effective_share",), "Effective share", "Part of the batch that RWR's weights let count."),
        (("implicit_accuracy",), "Implicit accuracy", "Share of pairs whose winner gained more; above 0.5 and rising."),
        (("margin",), "Implicit margin", "Winner's gain over the loser's; rises, without running away."),
        (("error_winner", "error_loser"), "Denoising error", "Both rising together is the classic failure."),
        (("nll_winner", "nll_real"), "Diffusion loss", "Stays level or falls; rising means forgetting."),
        (("kl",), "KL estimate", "Distance from the reference; grows slowly."),
        (("grad_norm",), "Gradient norm", "Before clipping."),
        (("learning_rate",), "Learning rate", ""),
        (("latent_reward_loss",), "Latent reward: loss", "Bradley-Terry; ln 2 = 0.693 where it cannot tell; falls."),
        (("latent_reward_accuracy",), "Latent reward: accuracy", "Share of judgements that it shares; ties left out."),
    ],
    "critic_curves": [
        (("loss",), "Total loss", "SRPO plus the weighted instruction-tuning loss."),
        (("srpo_loss",), "SRPO loss", "DPO on reasoning paths, weighted by certainty."),
        (("instruction_loss",), "Instruction loss", "Answer tokens only; falls."),
        (("certainty",), "Certainty", "Mean PCE of the pairs of reasoning paths."),
        (("accuracy",), "Implicit accuracy", "Share of pairs whose chosen path gained more."),
        (("margin",), "Implicit margin", "Chosen path's gain over the rejected one's."),
        (("grad_norm",), "Gradient norm", "Before clipping."),
    ],
}
LINE_NAMES = {"error_winner": "winner", "error_loser": "loser", "nll_winner": "winners", "nll_real": "real clips"}


def render(report: dict[str, Any]) -> str:
    """The page as HTML text; equal reports give equal text."""
    template = environment().get_template("template.html.j2")
    return template.render(report=report, charts=_charts(report), **_counts(report))


def environment(*folders: Path) -> jinja2.Environment:
    """What pages are made with: templates of `folders` and of this one, and filters for numbers and names."""
    import jinja2

    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "title_of": title_of,
        "points": points,
        "percent": percent,
        "plain": plain,
        "whole": lambda value: "–" if value is None else f"{value:.0f}",
        "signed": lambda value: f"{value:+.1f}".replace("-", "−"),
        "size": size,
        "capitalise": lambda text: text[:1].upper() + text[1:],
        "round_name": round_name,
    }
    return made


def title_of(name: str) -> str:
    return TITLES.get(name, name.replace("_", " ").capitalize())


def round_name(name: str) -> str:
    return f"Round {name}" if name != "base" else "Base"


def points(interval: dict[str, float] | None) -> str:
    """`61.2 [58.0, 64.1]`."""
    return "–" if interval is None else f"{interval['mean']:.1f} [{interval['low']:.1f}, {interval['high']:.1f}]"


def percent(value: dict[str, float] | float | None) -> str:
    """A fraction, or an interval of fractions, in percent."""
    if isinstance(value, dict):
        return points({key: 100 * value[key] for key in ("mean", "low", "high")})
    return "–" if value is None else f"{100 * value:.1f} %"


def plain(value: Any) -> str:
    """An expectation's observed or required value, as a person would write it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float | int):
        return number(value)
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    return str(value)


def size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def _counts(report: dict[str, Any]) -> dict[str, Any]:
    rounds = report["rounds"][1:]
    measured = [entry for entry in report["rounds"] if entry["scores"]]
    return {
        "rounds": rounds,
        "base": report["rounds"][0],
        "final": next(entry for entry in measured if entry["name"] == report["final"]),
        "guided": next((s["guided"] for e in rounds if (s := e["candidate_scores"]) and s["guided"]), None),
        "finished": sum(entry["finished"] for entry in rounds),
        "appearance": _appearance(rounds),
        "promoted": {
            model: [entry[f"{model}_decision"]["promoted"] for entry in rounds if entry[f"{model}_decision"]]
            for model in ("critic", "generator")
        },
        "last_agreement": [e for e in report["rounds"] if e["agreement"] and e["agreement"]["agreement"]][-1:],
        "dimensions": _dimensions(report["rounds"]),
        "unmeasured": sorted({*report["rounds"][0]["scores"]["dimensions"]} - {*_dimensions(report["rounds"])}),
        "frozen_maxes": set(FROZEN_MAXES),
        "rated": _ordered(entry["agreement"]["rating_agreement"] for entry in report["rounds"] if entry["agreement"]),
        "compared": _compared(report["baselines"]),
        "scored": len(report["baselines"]["external"]) + bool(report["baselines"]["videoreward"]),
        "observed": any((e["preferences"] or {}).get("videoreward") for e in rounds),
        "verdict_keys": _ordered(entry["labels"]["verdicts"] for entry in rounds if entry["labels"]),
    }


def _appearance(rounds: list[dict[str, Any]]) -> list[tuple[str, str, dict[str, Any]]]:
    """(round, who against whom, effect by statistic) of every round whose decision tells."""
    found = []
    for entry in rounds:
        told = (entry["generator_decision"] or {"evidence": {}})["evidence"].get("appearance", {})
        for who, whom in (("winners", "losers"), ("candidate", "incumbent")):
            if any((effects := told.get(who) or {}).values()):
                found.append((entry["name"], f"{who} against {whom}", effects))
    return found


def _compared(baselines: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Agreements that stand beside the critics', by the name to show."""
    trivial = baselines["trivial"] or {}
    own = {"Always the seed labels' most frequent" if k == "most_frequent" else "A coin": v for k, v in trivial.items()}
    own |= {"VideoReward": baselines["videoreward"]} if baselines["videoreward"] else {}
    return own | {f"{name} (its scores, added up)": found for name, found in baselines["external"].items()}


def _ordered(mappings: Any) -> list[str]:
    """All keys, the known dimensions first in their usual order, the others as they come."""
    keys = list(dict.fromkeys(key for mapping in mappings for key in mapping))
    return sorted(keys, key=lambda key: DIMENSIONS.index(key) if key in DIMENSIONS else len(DIMENSIONS))


def _dimensions(rounds: list[dict[str, Any]]) -> list[str]:
    """The benchmark's dimensions that were measured in any round."""
    every = [
        scores["dimensions"] for entry in rounds for key in ("scores", "candidate_scores") if (scores := entry[key])
    ]
    return in_reading_order(name for name in _ordered([every[0]]) if any(own.get(name) for own in every))


def _charts(report: dict[str, Any]) -> dict[str, Any]:
    rounds = report["rounds"]
    slots = ["base", *(entry["name"] if len(rounds) > 6 else f"round {entry['name']}" for entry in rounds[1:])]
    dimensions = _dimensions(rounds)
    threshold = report["min_agreement"]
    return {
        "total": _estimates(slots, rounds, "scores", ("total",), "Benchmark total over rounds, of 100"),
        "dimensions": {
            name: _estimates(slots, rounds, "scores", ("dimensions", name), f"{title_of(name)} over rounds", wide=False)
            for name in dimensions
        },
        "agreement": _estimates(
            slots,
            rounds,
            "agreement",
            ("agreement",),
            "Critic's agreement with held-out human labels over rounds, in percent",
            scale=100,
            unit="%",
            threshold=(100 * threshold, f"required: {100 * threshold:g} %"),
        ),
        "reward": _rewards(slots, rounds, report["scorer"]),
        "certainty": {
            entry["name"]: {
                kind: histogram(
                    counts["kept"],
                    counts["dropped"],
                    f"Certainty of {kind} in round {entry['name']}: {sum(counts['kept'])} kept, "
                    f"{sum(counts['dropped'])} dropped",
                    report["certainty_threshold"],
                )
                for kind, counts in entry["labels"]["certainty"].items()
            }
            for entry in rounds
            if entry["labels"]
        },
        "align_curves": _curves(rounds, "align_curves"),
        "critic_curves": _curves(rounds, "critic_curves"),
    }


def _rewards(slots: list[str], rounds: list[dict[str, Any]], scorer: str) -> Any:
    """Each round's mean score of its clips, in hundredths; nothing where no round has told it."""
    marks = []
    for slot, entry in enumerate(rounds):
        if entry["preferences"] and (found := entry["preferences"]["scored"]):
            mean, low, high = (100 * found[name] for name in ("mean", "low", "high"))
            text = f"{round_name(entry['name'])}: {mean:.1f}, 95% interval {low:.1f} to {high:.1f}"
            marks.append(Mark(slot, mean, low, high, "champion", text))
    label = f"Mean score that {scorer} gives each round's clips, in hundredths. "
    bounds = (float("-inf"), float("inf"))
    return interval_chart(slots, marks, label + "; ".join(mark.label for mark in marks), bounds=bounds) if marks else ""


def _estimates(
    slots: list[str],
    rounds: list[dict[str, Any]],
    key: str,
    path: tuple[str, ...],
    label: str,
    scale: float = 1.0,
    **options: Any,
) -> Any:
    """Champions' and candidates' estimates; a promoted candidate is a ring around the champion that it became."""
    marks, spoken = [], []
    decision = "generator_decision" if key == "scores" else "critic_decision"
    for slot, entry in enumerate(rounds):
        decided = entry[decision]
        verdict = "undecided" if decided is None else "promoted" if decided["promoted"] else "rejected"
        if key == "agreement" and (entry["settlement"] or {}).get("critic_rolled_back"):
            verdict = "rejected"
        for role, found in ((verdict, entry[f"candidate_{key}"]), ("champion", entry[key])):
            for part in path:
                found = found.get(part) if found else None
            if found is None:
                continue
            mean, low, high = (scale * found[name] for name in ("mean", "low", "high"))
            who = "champion" if role == "champion" else f"candidate, {role}"
            text = f"{round_name(entry['name'])}, {who}: {mean:.1f}, 95% interval {low:.1f} to {high:.1f}"
            # A candidate without a decision yet is drawn like a rejected one: it is not handed on.
            marks.append(Mark(slot, mean, low, high, "rejected" if role == "undecided" else role, text))
            spoken.append(text)
    return interval_chart(slots, marks, f"{label}. {'; '.join(spoken)}.", **options)


def _curves(rounds: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """One chart a quantity, one line a round; series that are not known here get a chart of their own."""
    held = [(number, entry["name"], entry[key]) for number, entry in enumerate(rounds) if entry[key]]
    known = {name for names, *_ in CURVES[key] for name in names}
    others = [name for name in _ordered(curves for *_, curves in held) if name not in known]
    charts = []
    unknown: list[Curve] = [((name,), title_of(name), "") for name in others]
    for names, title, about in CURVES[key] + unknown:
        lines = [
            Line(
                f"{round_name(name)}, {LINE_NAMES.get(series, series)}",
                curves[series],
                f"r{(number - 1) % 6 + 1}{' dashed' if series != names[0] else ''}",
            )
            for number, name, curves in held
            for series in names
            if series in curves
        ]
        if lines:
            ends = "; ".join(f"{line.name}: {_ends(line.points)}" for line in lines)
            styles = [LINE_NAMES[name] for name in names] if len(names) > 1 else []
            svg = line_chart(lines, f"{title} over training steps. {ends}.")
            charts.append({"title": title, "about": about, "svg": svg, "styles": styles})
    return charts


def _ends(points: list[tuple[float, float]]) -> str:
    return f"{number(points[0][1])} to {number(points[-1][1])}"
