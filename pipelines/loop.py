"""The whole experiment: data, base measurements, the rounds unrolled (a pipeline cannot recur), the report."""

from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Dataset

import components
from dualipo.pipeline.data import MEMBERS
from dualipo.steps import GRAPH, steps_of
from pipelines.build import Build
from pipelines.resources import dress
from pipelines.round import Handed, add_step, gathered, make_round


class Made(NamedTuple):
    runs: Dataset
    """Everything the report read, and the index of all artifacts."""
    page: HTML


def make_loop(build: Build) -> Any:
    """The pipeline `dual_ipo` over the rounds of the configuration.

    Its parameters, with the build's values as defaults: the configuration's sections, one JSON string each, the data
    and the library.
    """
    one_round = make_round(build)

    about = f"Dual-IPO, {len(build.config.rounds)} rounds of {build.config.experiment.name}."

    @dsl.pipeline(name=f"dual-ipo-{build.config.experiment.name}", description=about)
    def dual_ipo(
        library: str = build.library,
        data: str = build.data,
        data_md5: str = build.data_md5,
        experiment_params: str = build.parameter("experiment"),
        models_params: str = build.parameter("models"),
        rounds_params: str = build.parameter("rounds"),
        prompts_params: str = build.parameter("prompts"),
        generate_params: str = build.parameter("generate"),
        label_params: str = build.parameter("label"),
        check_labels_params: str = build.parameter("check_labels"),
        train_critic_params: str = build.parameter("train_critic"),
        train_reward_params: str = build.parameter("train_reward"),
        check_critic_params: str = build.parameter("check_critic"),
        prefer_params: str = build.parameter("prefer"),
        latent_reward_params: str = build.parameter("latent_reward"),
        align_params: str = build.parameter("align"),
        flow_nrg_params: str = build.parameter("flow_nrg"),
        evaluate_params: str = build.parameter("evaluate"),
        promote_generator_params: str = build.parameter("promote_generator"),
        settle_params: str = build.parameter("settle"),
    ) -> Made:
        sections = {name.removesuffix("_params"): v for name, v in locals().items() if name.endswith("_params")}
        fetched = components.load_data(library=library, data=data, data_md5=data_md5, models_params=models_params)
        loaded = dress(fetched, build, None)
        files = {f"{{data}}/{path}": loaded.outputs[name] for name, path in MEMBERS.items()}
        given = {f"data_{name}": loaded.outputs[name] for name in MEMBERS if name != "critic"}
        for step in steps_of("base"):
            add_step(step, build, {"library": library}, sections, files)
        run_id = {"run_id": dsl.PIPELINE_JOB_ID_PLACEHOLDER, "experiment_params": sections["experiment"]}
        base = gathered(files)
        given |= {f"base_{name}": base[name] for name in ("reward", "baselines", "held_out")}
        gather = dress(components.gather_base(**run_id, **base), build, None).set_caching_options(False)
        handed = {"base": {name: base[name] for name in Handed._fields if name != "runs"}}
        runs = gather.outputs["runs"]
        in_round = set(one_round.component_spec.inputs)
        own = {f"{name}_params": text for name, text in sections.items() if f"{name}_params" in in_round}
        for name, entry in build.config.rounds.items():
            before = {f"prev_{port}": channel for port, channel in handed[entry.prev].items()}
            task = one_round(library=library, round_name=name, before=runs, **own, **given, **before)
            task.set_display_name(f"round {name}")
            handed[name] = {port: task.outputs[port] for port in Handed._fields if port != "runs"}
            runs = task.outputs["runs"]
        told = {f"{name}_params": sections[name] for name in GRAPH["report"].sections}
        report = components.STEPS["report"](library=library, run_id=dsl.PIPELINE_JOB_ID_PLACEHOLDER, runs=runs, **told)
        dress(report, build, GRAPH["report"]).set_caching_options(False)
        return Made(runs=runs, page=report.outputs["page"])

    return dual_ipo
