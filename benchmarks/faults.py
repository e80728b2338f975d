"""What happens when something breaks: every fault of fault_list.py is really injected, into a small experiment.

    python benchmarks/faults.py [--only labels] [--seeds 20]

Runs the undamaged experiment of benchmarks/faults.yaml once (benchmarks/out/faults/whole), then breaks a copy of it for
each fault and looks who notices. Then labels undamaged rounds with other seeds, to see how often a gate closes on
nothing. Writes docs/faults.md and benchmarks/results/faults.json; exits with 1 where a fault is not caught.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")

from fault_alarms import alarms, resampled
from fault_list import FAULTS, Fault
from injecting import PARAMS, Lab, Outcome
from measuring import REPOSITORY, RESULTS, table

from dualipo.artifacts import read_json, write_json
from dualipo.config import load_config
from dualipo.runtime import threads

PAGE = REPOSITORY / "docs/faults.md"
KINDS = {
    "kill": "Killed by SIGKILL",
    "data": "Damaged, swapped and held-out data",
    "labels": "Poisoned pseudo-labels",
    "critic": "A critic made worse",
    "preferences": "Broken preferences",
    "generator": "A generator made worse, a benchmark that leaves out",
    "stores": "Stores that fail",
    "races": "Two at once",
}
"""Kinds of faults in the order of the page. A new kind is a line here; a new fault a function in fault_list.py."""


def inject(lab: Lab, fault: Fault) -> Outcome:
    try:
        found = fault.inject(lab)
        return replace(found, told=found.told.replace(f"{lab.copies}/", ""))
    except Exception as error:  # a fault that breaks the laboratory is a finding, not the end of the table
        return Outcome(False, "", f"the laboratory broke: {type(error).__name__}: {error}", "")


def page(outcomes: dict[str, Outcome], undamaged: dict[str, Any]) -> str:
    caught = sum(outcome.caught for outcome in outcomes.values())
    parts = [
        "# Faults, and what catches them",
        "`python benchmarks/faults.py` injects every fault of this page into a copy of a small experiment "
        "([benchmarks/faults.yaml](../benchmarks/faults.yaml): the small world, one round, its bounds written there), "
        "looks who notices, and writes this page. Nothing here is simulated but the fault.",
        f"**{caught} of {len(outcomes)} faults are caught**, with nothing lost. Caught is a fault only if the very "
        "expectation or message that is there for it speaks, and the models handed on are those of the round before.",
        _undamaged(undamaged),
    ]
    for kind, title in KINDS.items():
        rows = [
            [fault.what, fault.by, _who(outcome), _cell(outcome.told), outcome.kept]
            for name, fault in FAULTS.items()
            if fault.kind == kind and (outcome := outcomes.get(name))
        ]
        if rows:
            head = ["fault", "should be caught by", "was caught by", "what it said", "nothing lost"]
            parts.append(f"## {title}\n\n" + table(head, rows))
    return "\n\n".join(parts) + "\n"


def _who(outcome: Outcome) -> str:
    return outcome.by if outcome.caught else f"**nobody** (looked on: {outcome.by})"


def _cell(text: str, limit: int = 240) -> str:
    text = text.replace("|", "\\|").replace(f"{Path.cwd()}/", "")
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _undamaged(found: dict[str, Any]) -> str:
    seeds, sets = found["seeds"], found["resampled"]
    lines = [
        "## Undamaged rounds are not stopped",
        f"{seeds['stopped']} of {seeds['count']} undamaged rounds had a label gate that closed. "
        "Varied were the prompts drawn, the generator's noise and the critic's sampled paths, each by the experiment's "
        "seed; the models, the people's labels and all parameters are the same. The other gates are left out: the "
        "critic's and the benchmark's compare a candidate with its incumbent, and refuse about as often as training "
        "does not help.",
    ]
    if sets["count"]:
        lines.append(
            f"With the bounds of params.yaml, {sets['stopped']} of {sets['count']} label sets were stopped, each half "
            f"of the prompts of one of {sets['sources']} real sets of 2,400 labels (the label gate's suites on labels; "
            "shares of prompts were not asked, as halves miss them by chance)."
        )
    lines += [f"- {reason}" for reason in [*seeds["reasons"], *sets["reasons"]]]
    return "\n\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(KINDS), choices=list(KINDS), help="kinds of faults")
    parser.add_argument(
        "--again", nargs="+", choices=list(FAULTS), help="inject these alone; --result's last run has the rest"
    )
    parser.add_argument("--seeds", type=int, default=20, help="undamaged rounds; 0 for none")
    parser.add_argument("--labels", type=Path, nargs="*", default=[], help="rounds' folders whose labels are resampled")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks/out/faults")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--result", type=Path, default=RESULTS / "faults.json")
    arguments = parser.parse_args()
    begin = time.monotonic()
    lab = Lab(arguments.out, load_config(*PARAMS))
    lab.make(REPOSITORY / "data")
    last: dict[str, Any] = read_json(arguments.result) if arguments.again else {"faults": {}, "seconds": 0.0}
    outcomes = {name: Outcome(**found) for name, found in last["faults"].items()}
    for name, fault in FAULTS.items():
        if name in arguments.again if arguments.again else fault.kind in arguments.only:
            started = time.monotonic()
            outcomes[name] = found = inject(lab, fault)
            state = "caught" if found.caught else "NOT CAUGHT"
            print(f"{state}: {name} ({time.monotonic() - started:.1f} s): {found.by}: {found.told}", file=sys.stderr)
    undamaged = last.get("undamaged") or {
        "seeds": alarms(lab, arguments.seeds),
        "resampled": resampled(arguments.labels),
    }
    seconds = last["seconds"] + time.monotonic() - begin
    arguments.page.write_text(page(outcomes, undamaged), encoding="utf-8")
    content = {name: outcome.__dict__ for name, outcome in outcomes.items()}
    write_json(
        arguments.result,
        {
            "faults": content,
            "undamaged": undamaged,
            "parameters": [str(path.relative_to(REPOSITORY)) for path in PARAMS],
            "seconds": seconds,
            "threads": threads(),
        },
    )
    missed = [name for name, outcome in outcomes.items() if not outcome.caught]
    print(f"{len(outcomes) - len(missed)} of {len(outcomes)} caught in {seconds:.0f} s; written to {arguments.page}")
    for name in missed:
        print(f"Not caught: {name}: {outcomes[name].told}")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
