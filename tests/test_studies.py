"""Studies: what is compared, what is said of it, and one small study through DVC."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from projects import Project

from dualipo import engine
from dualipo.cli import cli
from dualipo.config import load_config
from dualipo.errors import UserError
from dualipo.studies.catalogue import Claim, Reference, load_catalogue
from dualipo.studies.comparing import judge_claim, pooled_difference
from dualipo.studies.measuring import Measured, Round, measure
from dualipo.studies.pipeline import write_pipeline
from dualipo.world.shrink import shrink

CATALOGUE = load_catalogue()


def measured(variant: str, seed: int, candidates: list[dict[str, float]], promoted: list[bool]) -> Measured:
    rounds, in_use = [], {}
    for index, (totals, accepted) in enumerate(zip(candidates, promoted, strict=True)):
        in_use = totals if accepted else in_use
        name = str(index) if index else "base"
        rounds.append(
            Round(
                name=name,
                candidate=totals,
                in_use=in_use,
                promoted=accepted,
                reasons=(),
                agreement=0.8,
                dimensions={},
            )
        )
    return Measured(variant=variant, seed=seed, suite="small_world", rounds=tuple(rounds), seconds={})


def runs(gains: dict[str, float], seeds: int = 3, noise: float = 1.0, prompts: int = 60):
    """A base, and a candidate of each variant that is so much better, in the mean over prompts that all share."""
    rng = np.random.default_rng(5)
    found = {}
    for seed in range(seeds):
        base = {f"p{i}": float(value) for i, value in enumerate(rng.uniform(30, 70, prompts))}
        for variant, gain in gains.items():
            better = {prompt: total + gain + float(rng.normal(0, noise)) for prompt, total in base.items()}
            found.setdefault(variant, {})[seed] = measured(variant, seed, [base, better], [True, True])
    return found


# ---- what is compared


@pytest.mark.parametrize("name", CATALOGUE.studies)
def test_every_variant_of_a_study_fits_the_experiment_and_changes_it(name, repository):
    base = load_config(repository / "params.yaml")
    for variant in CATALOGUE.studies[name].variants:
        config = CATALOGUE.variants[variant].config(base, seed=4)
        assert config.experiment.seed == 4 and list(config.rounds)[-1] == str(CATALOGUE.variants[variant].rounds)
        same = {key for key in type(config).model_fields if getattr(config, key) == getattr(base, key)}
        changed = {
            key.partition(".")[0] for key in (*CATALOGUE.variants[variant].changes, *CATALOGUE.variants[variant].times)
        }
        assert not changed & same and {"generate", "evaluate", "check_labels", "promote_generator"} <= same


def test_a_static_variant_takes_the_steps_of_several_rounds(repository):
    base = load_config(repository / "params.yaml")
    assert CATALOGUE.variants["static_3"].config(base, 0).align.steps == 3 * base.align.steps


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("base", Reference(None, None)),
        ("full", Reference("full", None)),
        ("full@2", Reference("full", 2)),
        ("candidate of kto@1", Reference("kto", 1, True)),
    ],
)
def test_references(text, found):
    assert Reference.parse(text) == found


def test_a_study_runs_no_more_rounds_than_its_claims_look_at():
    assert CATALOGUE.rounds(CATALOGUE.studies["losses"], "full") == 1
    assert CATALOGUE.rounds(CATALOGUE.studies["rounds"], "full") == 3
    assert CATALOGUE.rounds(CATALOGUE.studies["more_rounds"], "full") == 5


# ---- what is said of it


@pytest.mark.parametrize(
    ("gain", "seeds", "outcome"),
    [(3.0, 3, "holds"), (-3.0, 3, "does not hold"), (0.0, 3, "cannot be told"), (3.0, 2, "cannot be told")],
)
def test_a_claim_is_judged_by_its_interval(gain, seeds, outcome):
    found = judge_claim(Claim(says="it helps", better="full@1", worse="base"), runs({"full": gain}, seeds), 500)
    assert found.outcome == outcome and len(found.by_seed) == seeds


def test_one_seed_that_outweighs_the_others_is_not_enough():
    found = runs({"full": -0.5}, noise=0.1)
    one = found["full"][0].rounds
    better = {prompt: total + 30 for prompt, total in one[0].candidate.items()}
    found["full"][0] = measured("full", 0, [one[0].candidate, better], [True, True])
    judged = judge_claim(Claim(says="it helps", better="full@1", worse="base"), found, 500)
    assert judged.difference["low"] > 0 and judged.outcome == "cannot be told" and "1 of 3" in judged.why


def test_a_refused_candidate_counts_only_where_it_is_asked_for():
    base, worse = {"a": 50.0, "b": 60.0}, {"a": 40.0, "b": 50.0}
    found = {"full": {seed: measured("full", seed, [base, worse], [True, False]) for seed in range(3)}}
    judge = {
        text: judge_claim(Claim(says="", better=text, worse="base"), found, 200)
        for text in ("full@1", "candidate of full@1")
    }
    assert judge["full@1"].difference == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert judge["full@1"].outcome == "cannot be told" and "no difference" in judge["full@1"].why
    assert judge["candidate of full@1"].outcome == "does not hold"


def test_different_prompts_are_refused():
    found = runs({"full": 1.0, "kto": 1.0})
    for seed, one in found["kto"].items():
        totals = {f"other-{prompt}": total for prompt, total in one.rounds[1].candidate.items()}
        found["kto"][seed] = measured("kto", seed, [totals, totals], [True, True])
    with pytest.raises(UserError, match="different benchmark prompts"):
        judge_claim(Claim(says="", better="full@1", worse="kto@1"), found, 200)


def test_the_pooled_interval_draws_whole_prompts():
    rng = np.random.default_rng(0)
    effect = rng.normal(1, 4, 40)  # of each prompt, the same in every seed: more seeds tell nothing more
    pairs = [({f"p{i}": 0.0 for i in range(40)}, {f"p{i}": float(e) for i, e in enumerate(effect)})] * 5
    found = pooled_difference(pairs, 4000)
    assert found["mean"] == pytest.approx(effect.mean())
    half = 1.96 * effect.std() / np.sqrt(40)
    assert (found["high"] - found["low"]) / 2 == pytest.approx(half, rel=0.15)


# ---- run


@dataclass(frozen=True)
class Studied:
    """A study of two variants with one seed, done by DVC."""

    project: Project
    printed: str

    @property
    def folder(self) -> Path:
        return self.project.folder


@pytest.fixture(scope="module")
def studied(tmp_path_factory, repository) -> Studied:
    folder = tmp_path_factory.mktemp("studies")
    shrink(repository / "data", folder / "data")
    (folder / "params.yaml").write_bytes((repository / "params/smoke.yaml").read_bytes())
    project = Project(folder)
    project.do("git", "init", "--quiet")
    project.dvc("init", "--quiet")
    arguments = ["study", "losses", "--seed", "0", "--folder", str(folder)]
    found = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert found.exit_code == 0
    return Studied(project, found.output)


def test_a_study_is_a_dvc_pipeline_that_shares_what_its_variants_share(studied):
    folder = studied.folder
    assert "cannot be told**: 1 of the 3 seeds" in studied.printed
    results = json.loads((folder / "studies/losses/results.json").read_text())
    assert [row["variant"] for row in results["rows"] if row["round"] == "1"] == ["full", "kto"]
    assert len({row["candidate"] for row in results["rows"] if row["round"] == "1"}) > 1
    (line,) = [row for row in studied.printed.splitlines() if row.startswith("| prompt_success |")]
    scores = [row["dimensions"]["prompt_success"] for row in results["rows"]]
    assert len(scores) == 4 and scores[0] == scores[2], "base and one round, of each variant"
    assert line.split(" | ")[1:] == [f"{scores[0]:.1f}", f"{scores[1]:.1f}", f"{scores[3]:.1f} |"]
    runs = folder / "studies/runs/seed-0"
    records = {v: json.loads((runs / v / ".dualipo/done/base-start.json").read_text()) for v in ("full", "kto")}
    assert len({record["seconds"] for record in records.values()}) == 1, "measured once, for all"
    status = json.loads(studied.project.dvc("status", "--json", "studies/losses/dvc.yaml"))
    assert status == {}
    # another study finds the run of `full` done.
    before = (runs / "full/.dualipo/done/1-align.json").stat().st_mtime_ns
    config = load_config(folder / "params.yaml")
    write_pipeline(
        "static", CATALOGUE.studies["static"], CATALOGUE, config, [0], folder / "data", folder / "studies/static"
    )
    stages = (folder / "studies/static/dvc.yaml").read_text()
    assert "dualipo study measure static_3-0 --data ../../data" in stages
    assert (runs / "full/.dualipo/done/1-align.json").stat().st_mtime_ns == before


def test_what_is_taken_from_another_run_is_what_would_be_made(studied, tmp_path):
    folder = studied.folder
    lender = folder / "studies/runs/seed-0/kto"
    config = CATALOGUE.variants["kto"].config(load_config(folder / "params.yaml"), 0)
    own, taken = tmp_path / "own", tmp_path / "taken"
    for place, lenders in ((own, ()), (taken, (lender,))):
        measure("kto", config, place, folder / "data", lenders)
    files = {
        place: {str(p.relative_to(place)): p.read_bytes() for p in (place / "runs").rglob("*") if p.is_file()}
        for place in (own, taken)
    }
    assert files[own].keys() == files[taken].keys() and files[own] == files[taken]


def test_a_lender_that_was_changed_lends_nothing(studied, tmp_path):
    folder = studied.folder
    lender = tmp_path / "lender"
    shutil.copytree(folder / "studies/runs/seed-0/full", lender, symlinks=True)
    prompts = lender / "runs/1/prompts.jsonl"
    prompts.write_text(prompts.read_text().replace("red", "blue"))
    config = load_config(folder / "params.yaml")
    step = engine.GRAPH["prompts"]
    data = (folder / "data").absolute()
    made = engine.execute(step, config, tmp_path / "new", "1", track=False, data=data, lenders=[lender])
    assert made.outputs["prompts"].read_text() != prompts.read_text()


def test_a_study_outside_a_dvc_repository_says_what_to_do(tmp_path, repository):
    (tmp_path / "data").mkdir()
    shutil.copy(repository / "params.yaml", tmp_path / "params.yaml")
    found = CliRunner().invoke(cli, ["study", "systems", "--folder", str(tmp_path)])
    assert isinstance(found.exception, UserError) and "--no-dvc" in str(found.exception)


def test_what_was_not_measured_is_named(tmp_path, repository, monkeypatch):
    config = load_config(repository / "params.yaml")
    write_pipeline("losses", CATALOGUE.studies["losses"], CATALOGUE, config, [0], tmp_path, tmp_path / "studies/losses")
    monkeypatch.chdir(tmp_path / "studies/losses")
    found = CliRunner().invoke(cli, ["study", "judge", "losses"])
    assert isinstance(found.exception, UserError) and "full-0.json: not measured yet" in str(found.exception)
    assert not Path("results.json").exists()


def test_the_table_of_systems_names_what_there_is(repository):
    systems = yaml.safe_load((repository / "benchmarks/systems.yaml").read_text())
    for entry in systems:
        study, says = entry["claim"]
        assert says in {claim.says for claim in CATALOGUE.studies[study].claims}
        for place in [*entry["code"], *entry["tests"]]:
            path, _, names = place.partition(": ")
            assert (repository / path).exists(), place
            for name in names.split(", ") if names else ():
                assert f"def {name}(" in (repository / path).read_text(), place
