"""The faults: each a function that breaks a copy of the lab's experiment and says who noticed.

Adding one: write a function under `@fault(kind, what is broken, by whom it should be caught)`; benchmarks/faults.py
finds it in FAULTS. Its name is the name of its folder.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from injecting import ROUND, Ended, Lab, Outcome, in_process, limit_files
from poisoning import TURN, Row, change_labels, read_rows, rewrite, said_in_both, says, turn, turn_all

from dualipo.artifacts import read_json, write_json, write_json_lines
from dualipo.steps import GRAPH

LABELS, PAIRS = "runs/1/labels", "runs/1/preferences/pairs.jsonl"


@dataclass(frozen=True)
class Fault:
    name: str
    kind: str
    what: str
    by: str
    """Who should catch it."""
    inject: Callable[[Lab], Outcome]


FAULTS: dict[str, Fault] = {}


def fault(kind: str, what: str, by: str) -> Callable[[Callable[[Lab], Outcome]], Callable[[Lab], Outcome]]:
    def register(inject: Callable[[Lab], Outcome]) -> Callable[[Lab], Outcome]:
        FAULTS[inject.__name__] = Fault(inject.__name__, kind, what, by, inject)
        return inject

    return register


# ---- kills


def _killed(step: str) -> Callable[[Lab], Outcome]:
    def inject(lab: Lab) -> Outcome:
        """Twice: in the middle of its work, and when only its last file is not in its place."""
        folder, expected = lab.copy(f"kill_{step}"), lab.md5s(lab.whole, step)
        versions = lab.versions(folder)
        lab.unmade(folder, step)
        half = max((lab.writes[step] + 1) // 2, 1)
        first = lab.kill(folder, step, half)
        published = [md5 for md5 in lab.md5s(folder, step).values() if md5 != "missing"]
        # what is done of the work is not done again, so that fewer files are left to write.
        second = lab.kill(folder, step, len(GRAPH[step].outputs) + 1)
        ended = lab.call(folder, step, track=True)
        same, registered = lab.md5s(folder, step) == expected, lab.versions(folder) == versions
        left = [p for kind in ("staging", "work") for p in (folder / ".dualipo" / kind).iterdir()]
        kills = 1 + (second.how == "killed")
        caught = first.how == "killed" and not published and ended.how == "done" and same and registered and not left
        told = f"killed {kills} times, first before file {half} of {lab.writes[step]}; the same command ended the work"
        whole = f"{len(expected)} output{'s' * (len(expected) > 1)} of the same md5 as without a kill"
        kept = f"{whole}, no half output, the registry unchanged"
        if not caught:
            told = f"{first} {second} {ended}; published early {published}, same {same}, registry {registered}, {left}"
        return Outcome(caught, "resuming", told, kept)

    inject.__name__ = f"kill_{step}"
    return inject


for _step in GRAPH:
    fault("kill", f"kill -9 in `{_step}`", "resuming")(_killed(_step))


# ---- damaged, swapped and held-out data


@fault("data", "a clip of the seed labels cut in half", "`start`")
def seed_clip_cut(lab: Lab) -> Outcome:
    folder = lab.copy("seed_clip_cut", own_data=True)
    _cut(min((folder / "data/seed/clips").glob("*.mp4")))
    return _refused(lab, folder, "start")


@fault("data", "a shard of the round's clips overwritten after it was made", "the digests of `dualipo run`")
def clips_overwritten(lab: Lab) -> Outcome:
    return _made_again(lab, "clips_overwritten", "generate", "*.tar")


@fault("data", "the critic handed on swapped for another one", "the digests of `dualipo run`")
def critic_swapped_in_place(lab: Lab) -> Outcome:
    folder = lab.copy("critic_swapped_in_place")
    _replace_folder(folder / "runs/1/critic", lab.out / "data/critic_reference")
    ended = lab.run(folder, f"{ROUND}/settle")
    return _restored(lab, folder, ended, "settle")


@fault("data", "the champion's weights with one bit flipped", "`dualipo verify`")
def weights_flipped(lab: Lab) -> Outcome:
    folder = lab.copy("weights_flipped")
    weights = max((folder / "runs/1/generator_candidate").rglob("*.safetensors"), key=lambda path: path.stat().st_size)
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    return _verified(lab, folder, "generator", "runs/1/generator_candidate")


@fault("data", "the labels that the champion was trained on swapped for others", "`dualipo verify`")
def labels_swapped_later(lab: Lab) -> Outcome:
    folder = lab.copy("labels_swapped_later")
    rewrite(folder / LABELS / "choices.jsonl", lambda rows: rows[::-1])
    return _verified(lab, folder, "critic", LABELS)


@fault("data", "labels of another round", "`check_labels`")
def labels_of_another_round(lab: Lab) -> Outcome:
    folder = lab.copy("labels_of_another_round")
    for name in ("ratings", "choices"):
        path = folder / LABELS / f"{name}.jsonl"
        path.write_text(path.read_text().replace('"r1-', '"r2-'))
    return _refused(lab, folder, "check_labels")


@fault("data", "labels of clips that are not among the candidates", "`check_labels`")
def labels_of_other_clips(lab: Lab) -> Outcome:
    folder = lab.copy("labels_of_other_clips")
    rewrite(folder / LABELS / "ratings.jsonl", lambda rows: [{**row, "clip": f"x{row['clip']}"} for row in rows])
    return _refused(lab, folder, "check_labels")


@fault("data", "a NaN among the labels", "`check_labels`")
def nan_label(lab: Lab) -> Outcome:
    folder = lab.copy("nan_label")
    rewrite(folder / LABELS / "ratings.jsonl", lambda rows: [{**rows[0], "certainty": float("nan")}, *rows[1:]])
    return _refused(lab, folder, "check_labels")


@fault("data", "the last line of the labels cut off", "`check_labels`")
def labels_cut(lab: Lab) -> Outcome:
    folder = lab.copy("labels_cut")
    path = folder / LABELS / "choices.jsonl"
    path.write_text(path.read_text()[:-40])
    return _refused(lab, folder, "check_labels")


@fault("data", "a prompt of the human test set among the seed labels, in capitals", "hashes, in `train_critic`")
def test_prompt_in_seed(lab: Lab) -> Outcome:
    folder = lab.copy("test_prompt_in_seed", own_data=True)
    stolen = _prompts(folder / "data/test/choices.csv")[0]
    own = _prompts(folder / "data/seed/choices.csv")[0]
    path = folder / "data/seed/choices.csv"
    path.write_text(path.read_text().replace(f",{own},", f",{stolen.upper()},"))
    return _refused(lab, folder, "train_critic")


@fault("data", "a prompt of the human test set among the real clips' captions", "hashes, in `align`")
def test_prompt_in_real(lab: Lab) -> Outcome:
    folder = lab.copy("test_prompt_in_real", own_data=True)
    stolen = _prompts(folder / "data/test/choices.csv")[0]
    path = folder / "data/real/captions.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], f"{lines[-1].partition(',')[0]},{stolen}"]) + "\n")
    return _refused(lab, folder, "align")


@fault("data", "a benchmark prompt among the round's pseudo-labels", "hashes, in `train_critic`")
def benchmark_prompt_in_labels(lab: Lab) -> Outcome:
    folder = lab.copy("benchmark_prompt_in_labels")
    stolen = json.loads((lab.out / "data/benchmark.jsonl").read_text().splitlines()[0])["text"]
    rewrite(folder / LABELS / "ratings.jsonl", lambda rows: [{**rows[0], "prompt": f"{stolen}. "}, *rows[1:]])
    return _refused(lab, folder, "train_critic")


@fault("data", "another human test set after the round began", "hashes, in `check_critic`")
def test_set_swapped(lab: Lab) -> Outcome:
    folder = lab.copy("test_set_swapped", own_data=True)
    _replace_folder(folder / "data/test", folder / "data/seed")
    return _refused(lab, folder, "check_critic")


@fault("data", "a gate's verdict edited from failed to passed", "`promote_critic`")
def verdict_edited(lab: Lab) -> Outcome:
    folder = lab.copy("verdict_edited")
    path = folder / "runs/1/critic_gate/verdict.json"
    verdict = read_json(path)
    verdict["suites"]["agreement"]["expectations"][0]["passed"] = False
    write_json(path, verdict)
    return _refused(lab, folder, "promote_critic")


@fault("data", "pickled weights in the critic's folder", "`label`")
def pickled_weights(lab: Lab) -> Outcome:
    import torch

    folder = lab.copy("pickled_weights")
    (folder / "runs/base/critic/model.safetensors").unlink()
    torch.save({"weight": torch.zeros(2)}, folder / "runs/base/critic/pytorch_model.bin")
    return _refused(lab, folder, "label")


@fault("data", "a generator's weights cut in half", "`generate`")
def weights_cut(lab: Lab) -> Outcome:
    folder = lab.copy("weights_cut")
    _cut(folder / "runs/base/generator/transformer/diffusion_pytorch_model.safetensors")
    return _refused(lab, folder, "generate")


# ---- poisoned pseudo-labels


def poison(name: str, what: str, sees: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A fault that changes rows of the labels: the function gets ratings and choices, and changes them in place."""

    def register(change: Callable[[list[Row], list[Row]], None]) -> Callable[..., None]:
        def inject(lab: Lab) -> Outcome:
            folder = lab.copy(name)
            change_labels(folder / LABELS, change)
            return _label_gate(lab, folder, sees)

        inject.__name__ = name
        fault("labels", what, "label gate")(inject)
        return change

    return register


@poison("all_a", "every pair's verdict is A, in both orders", "kl_choice_overall")
def _all_a(ratings: list[Row], choices: list[Row]) -> None:
    for row in choices:
        said_in_both(row, "a")


@poison("all_ties", "every pair is a tie", "balance: tie_share")
def _all_ties(ratings: list[Row], choices: list[Row]) -> None:
    for row in choices:
        said_in_both(row, "tie")


@poison("all_good", "every clip is good", "kl_rating_motion")
def _all_good(ratings: list[Row], choices: list[Row]) -> None:
    for row in ratings:
        says(row, "good")


@poison("first_shown", "the clip shown first is preferred", "position_bias")
def _first_shown(ratings: list[Row], choices: list[Row]) -> None:
    for row in choices:
        says(row, "a", forward="a", backward="b", consistent=False, kept=False)


@poison("inverted_column", "verdicts turned round in the table alone", "verdict, chosen_says")
def _inverted_column(ratings: list[Row], choices: list[Row]) -> None:
    for row in [*ratings, *choices]:
        row["verdict"] = TURN[row["verdict"]]


@poison("inverted_ratings", "ratings turned round: verdicts, votes and reasoning paths", "choices_follow_ratings")
def _inverted_ratings(ratings: list[Row], choices: list[Row]) -> None:
    for row in ratings:
        turn(row)


@poison("inverted_choices", "choices turned round: verdicts, votes and reasoning paths", "choices_follow_ratings")
def _inverted_choices(ratings: list[Row], choices: list[Row]) -> None:
    for row in choices:
        turn(row)


def unseen(name: str, what: str, sees: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A fault in the labels that passes the label gate: the critic is trained on them, harder than the experiment does,
    and is then held against people."""

    def register(change: Callable[[list[Row], list[Row]], None]) -> Callable[..., None]:
        def inject(lab: Lab) -> Outcome:
            folder = lab.copy(name)
            change_labels(folder / LABELS, change)
            looked = _label_gate(lab, folder, "")
            if looked.caught:
                return looked
            section = {"steps": 40, "batch_size": 8, "instruction_batch_size": 8, "learning_rate": 2e-4}
            found = _critic_gate(lab, folder, {"train_critic": section | {"seed_share": 0.0}}, sees)
            return replace(found, told=f"the label gate saw nothing; {found.told}")

        inject.__name__ = name
        fault("labels", what, "label gate or critic gate")(inject)
        return change

    return register


unseen("inverted_all", "ratings and choices both turned round, paths and votes too", "agreement: rating_drop")(turn_all)


@unseen("shuffled_ratings", "each clip gets another clip's ratings", "agreement: rating_drop")
def _shuffled(ratings: list[Row], choices: list[Row]) -> None:
    for dimension in sorted({row["dimension"] for row in ratings}):
        own = [row for row in ratings if row["dimension"] == dimension]
        answers = [{k: row[k] for k in ("verdict", "votes", "chosen", "rejected")} for row in own]
        for index, row in enumerate(own):
            row |= answers[(index + len(own) // 2) % len(own)]


@poison("guessing", "the paths of every question vote at random", "vote_entropy_ratings")
def _guessing(ratings: list[Row], choices: list[Row]) -> None:
    for words, rows in ((("good", "bad"), ratings), (("a", "b"), choices)):
        for row in rows:
            # two votes apart are a tie of votes, which is settled by the word in the middle.
            row |= {"votes": dict.fromkeys(words, 1)}


@poison("unanimous", "all paths of every question agree: nothing to learn from", "vote_entropy_ratings")
def _unanimous(ratings: list[Row], choices: list[Row]) -> None:
    for row in [*ratings, *choices]:
        row |= {"votes": {row["verdict"]: sum(row["votes"].values())}, "rejected": None}


@poison("doubled_rows", "every tenth label stands twice", "no duplicates")
def _doubled_rows(ratings: list[Row], choices: list[Row]) -> None:
    ratings += ratings[::10]
    choices += choices[::10]


@poison("off_distribution", "only labels of simple prompts are kept", "coverage: difficulty")
def _off_distribution(ratings: list[Row], choices: list[Row]) -> None:
    for row in [*ratings, *choices]:
        row["kept"] = row["kept"] and "staying still" in row["prompt"]


@poison("constant_certainty", "every label has the same certainty", "certainty_spread_ratings")
def _constant_certainty(ratings: list[Row], choices: list[Row]) -> None:
    for row in [*ratings, *choices]:
        row["certainty"] = 0.7


@poison("unsure_kept", "labels are kept whatever their certainty", "ratings: certainty")
def _unsure_kept(ratings: list[Row], choices: list[Row]) -> None:
    for row in ratings:
        row["kept"] = True


@poison("nothing_kept", "no label is kept", "ratings_kept")
def _nothing_kept(ratings: list[Row], choices: list[Row]) -> None:
    for row in [*ratings, *choices]:
        row["kept"] = False


@poison("swap_ignored", "choices are kept that did not survive the swap", "choices: consistent")
def _swap_ignored(ratings: list[Row], choices: list[Row]) -> None:
    for row in choices:
        row["kept"] = row["certainty"] > 0.5


@fault("labels", "every fourth clip is a copy of the one before", "label gate")
def copied_clips(lab: Lab) -> Outcome:
    folder = lab.copy("copied_clips")
    manifest = folder / "runs/1/candidates/manifest.jsonl"
    rows = read_rows(manifest)
    for index in range(3, len(rows), 4):
        rows[index]["file"] = rows[index - 1]["file"]
    write_json_lines(manifest, rows)
    return _label_gate(lab, folder, "duplicate_clips")


@fault("labels", "verdicts far from those of the last accepted set, where all motion was normal", "label gate")
def drifted(lab: Lab) -> Outcome:
    folder = lab.copy("drifted")
    path = folder / "runs/base/label_profile.json"
    content = read_json(path)
    for profile in content.values():
        profile["questions"]["rating/motion"]["kept_shares"] = {"normal": 1.0}
    write_json(path, content)
    return _label_gate(lab, folder, "drift_rating_motion")


# ---- critics


@fault("critic", "a critic trained on the people's labels turned round", "critic gate")
def critic_trained_wrong(lab: Lab) -> Outcome:
    folder = lab.copy("critic_trained_wrong", own_data=True)
    for name in ("ratings", "choices"):
        path = folder / f"data/seed/{name}.csv"
        path.write_text(re.sub(r",(a|b|good|bad),", lambda found: f",{TURN[found[1]]},", path.read_text()))
    section = {"steps": 40, "batch_size": 2, "instruction_batch_size": 16, "learning_rate": 3e-4, "seed_share": 1.0}
    return _critic_gate(lab, folder, {"train_critic": section}, "agreement: rating_drop")


@fault("critic", "noise on every weight of the critic candidate", "critic gate")
def critic_noised(lab: Lab) -> Outcome:
    folder = lab.copy("critic_noised")
    _add_noise(folder / "runs/1/critic_candidate/model.safetensors")
    return _judged_critic(lab, folder, lab.call(folder, "check_critic"), "agreement: agreement")


# ---- preferences


def preference(name: str, what: str, sees: str) -> Callable[[Callable[[list[Row]], list[Row]]], Callable[..., Any]]:
    """A fault in the pairs: the preference gate's own step makes them, so its function is called on broken ones."""

    def register(change: Callable[[list[Row]], list[Row]]) -> Callable[..., Any]:
        def inject(lab: Lab) -> Outcome:
            from dualipo.quality.gate import preference_gate
            from dualipo.records import Preference

            folder = lab.copy(name)
            rewrite(folder / PAIRS, change)
            pairs = [Preference.model_validate(row) for row in read_rows(folder / PAIRS)]
            preference_gate(folder / "runs/1/preference_gate", pairs, lab.config.prefer)
            return lab.judged(folder, "preference_gate", ("generator",), sees)

        inject.__name__ = name
        fault("preferences", what, "preference gate")(inject)
        return change

    return register


@preference("losers_win", "winner and loser of each pair change places", "margin")
def _losers_win(rows: list[Row]) -> list[Row]:
    ends = ("winner", "loser")
    return [{**row, **{a + s: row[b + s] for a, b in (ends, ends[::-1]) for s in ("", "_score")}} for row in rows]


@preference("winner_is_loser", "a clip is preferred to itself", "winner, loser")
def _winner_is_loser(rows: list[Row]) -> list[Row]:
    return [{**rows[0], "loser": rows[0]["winner"]}, *rows[1:]]


@preference("pairs_doubled", "every pair stands twice", "pair:")
def _pairs_doubled(rows: list[Row]) -> list[Row]:
    return [*rows, *rows]


@preference("too_few_pairs", "three pairs are left", "number of rows")
def _too_few(rows: list[Row]) -> list[Row]:
    return rows[:3]


# ---- generators and benchmarks


@fault("generator", "noise on every weight of the candidate", "benchmark")
def generator_noised(lab: Lab) -> Outcome:
    folder = lab.copy("generator_noised")
    _add_noise(folder / "runs/1/generator_candidate/transformer/diffusion_pytorch_model.safetensors")
    return _benchmarked(lab, folder, lab.call(folder, "evaluate"))


@fault("generator", "a generator aligned with preferences turned round, the preference gate looking away", "benchmark")
def generator_aligned_wrong(lab: Lab) -> Outcome:
    folder = lab.copy("generator_aligned_wrong")
    rewrite(folder / PAIRS, _losers_win)
    config = lab.config.model_copy(
        update={
            "align": lab.config.align.model_copy(
                update={"steps": 60, "batch_size": 8, "learning_rate": 3e-4, "lambda_winner": 0.0, "lambda_real": 0.0}
            )
        }
    )
    ended = lab.call(folder, "align", config=config)
    return _benchmarked(lab, folder, lab.call(folder, "evaluate") if ended.how == "done" else ended)


def omission(name: str, what: str) -> Callable[[Callable[[Row], None]], Callable[..., Any]]:
    def register(change: Callable[[Row], None]) -> Callable[..., Any]:
        def inject(lab: Lab) -> Outcome:
            folder = lab.copy(name)
            path = folder / "runs/1/generator_candidate_scores.json"
            scores = read_json(path)
            scores["total"] = {"mean": 99.0, "low": 98.0, "high": 99.5}
            change(scores)
            write_json(path, scores)
            return _benchmarked(lab, folder, Ended("done"))

        inject.__name__ = name
        fault("generator", what, "promotion")(inject)
        return change

    return register


@omission("dimension_missing", "a benchmark that leaves out a dimension, and gives a high total")
def _dimension_missing(scores: Row) -> None:
    scores["dimensions"]["motion_smoothness"] = None


@omission("total_missing", "a benchmark without a total")
def _total_missing(scores: Row) -> None:
    scores["total"] = None


@omission("prompts_missing", "a benchmark on half of the prompts, and a high total")
def _prompts_missing(scores: Row) -> None:
    scores["prompts"] //= 2


@omission("another_suite", "scores of another suite")
def _another_suite(scores: Row) -> None:
    scores["suite"] = "vbench"


@fault("generator", "a high total written into the candidate's scores by hand", "the digests of `dualipo run`")
def scores_edited(lab: Lab) -> Outcome:
    folder = lab.copy("scores_edited")
    path = folder / "runs/1/generator_candidate_scores.json"
    write_json(path, read_json(path) | {"total": {"mean": 99.0, "low": 98.0, "high": 99.5}})
    return _restored(lab, folder, lab.run(folder, f"{ROUND}/evaluate"), "evaluate")


# ---- stores


@fault("stores", "MLflow does not answer", "a record that waits")
def mlflow_down(lab: Lab) -> Outcome:
    folder = lab.copy("mlflow_down")
    versions, expected = lab.versions(folder), lab.md5s(lab.whole, "check_labels")
    lab.unmade(folder, "check_labels")

    def call() -> str:
        os.environ |= {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
        return lab._execute(folder, "check_labels", None, {"track": True})

    down = in_process(call)
    begin = time.monotonic()
    again = lab.call(folder, "check_labels", track=True)
    taken = time.monotonic() - begin
    same = lab.md5s(folder, "check_labels") == expected and lab.versions(folder) == versions
    caught = down.how == "refused" and again.how == "done" and same
    kept = f"the next call recorded what was done, in {taken:.0f} s; md5s and the registry as without the fault"
    return Outcome(caught, "a record that waits", down.message if caught else f"{down} {again} same {same}", kept)


@fault("stores", "the data's store does not answer", "`load_data`")
def data_store_down(lab: Lab) -> Outcome:
    from dualipo.pipeline.data import MEMBERS, fetch

    folder = lab.copy("data_store_down")

    def call() -> None:
        os.environ |= {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "x", "AWS_MAX_ATTEMPTS": "1"}
        os.environ |= {"AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "none"}
        fetch("s3://nowhere/data", "", {name: folder / "fetched" / name for name in MEMBERS})

    (folder / "fetched").mkdir()
    ended = in_process(call)
    left = list((folder / "fetched").iterdir())
    return Outcome(ended.how == "refused" and not left, "`load_data`", ended.message, "nothing half fetched is left")


@fault("stores", "the disk is full in the middle of a step", "the engine")
def disk_full(lab: Lab) -> Outcome:
    folder = lab.copy("disk_full")
    expected = lab.md5s(lab.whole, "train_critic")
    lab.unmade(folder, "train_critic")

    def call() -> str:
        limit_files(2**20)
        return lab._execute(folder, "train_critic", None, {})

    full = in_process(call)
    published = [md5 for md5 in lab.md5s(folder, "train_critic").values() if md5 != "missing"]
    again = lab.call(folder, "train_critic")
    same = lab.md5s(folder, "train_critic") == expected
    caught = full.how == "refused" and not published and again.how == "done" and same
    kept = "no half output; with room the same command made the md5s of an undisturbed run"
    return Outcome(caught, "the engine", full.message if caught else f"{full} {published} {again} {same}", kept)


# ---- races


@fault("races", "a second `dualipo run` in the same folder", "a lock")
def two_runs(lab: Lab) -> Outcome:
    folder = lab.copy("two_runs")
    lab.unmade(folder, "label")
    return _raced(lab, folder, "label", lambda: lab.run(folder), lambda: lab.run(folder))


@fault("races", "the same step called twice at once", "a lock")
def step_twice(lab: Lab) -> Outcome:
    folder = lab.copy("step_twice")
    lab.unmade(folder, "generate")
    return _raced(lab, folder, "generate", *[lambda: lab.call(folder, "generate")] * 2)


def _raced(lab: Lab, folder: Path, step: str, first: Callable[[], Ended], second: Callable[[], Ended]) -> Outcome:
    """Starts `second` once `first` is at work on the step."""
    ended: list[Ended] = []
    thread = threading.Thread(target=lambda: ended.append(first()))
    thread.start()
    deadline = time.monotonic() + 60
    while not list((folder / ".dualipo/work").glob(f"{step}-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    other = second()
    thread.join()
    same = lab.md5s(folder, step) == lab.md5s(lab.whole, step)
    caught = other.how == "refused" and ended[0].how == "done" and same
    told = other.message if caught else f"{ended} {other} same {same}"
    return Outcome(caught, "a lock", told, "the first went on and made the md5s of an undisturbed run")


# ---- what the faults share


def _refused(lab: Lab, folder: Path, step: str) -> Outcome:
    """Calls a step again on broken input: it must refuse in one sentence, and leave its outputs as they were."""
    before = lab.md5s(folder, step)
    ended = lab.call(folder, step)
    kept = lab.md5s(folder, step) == before and not list((folder / ".dualipo/staging").glob("*"))
    told = ended.message.replace(f"{folder}/", "")
    caught = ended.how == "refused" and kept and "\n" not in told
    return Outcome(caught, f"`{step}`", told if ended.how == "refused" else f"{ended.how}: {told}", "outputs as before")


def _made_again(lab: Lab, name: str, step: str, pattern: str) -> Outcome:
    folder = lab.copy(name)
    [port] = GRAPH[step].outputs
    _cut(min(lab.path(folder, step, port).glob(pattern)))
    return _restored(lab, folder, lab.run(folder, f"{ROUND}/{step}"), step)


def _restored(lab: Lab, folder: Path, ended: Ended, step: str) -> Outcome:
    same = lab.md5s(folder, step) == lab.md5s(lab.whole, step)
    told = f"`{step}` was run again, {ended.message} step in all" if ended.how == "done" else f"{ended}"
    kept = "made again with the same md5, everything else up to date"
    return Outcome(ended.how == "done" and ended.message == "1" and same, "the digests of `dualipo run`", told, kept)


def _verified(lab: Lab, folder: Path, kind: str, path: str) -> Outcome:
    from dualipo.lineage import verify

    found = [check for check in verify(folder, lab.config, f"faults-{kind}@champion") if check.broken]
    told = "; ".join(f"{check.state} {check.name} {check.note}".strip() for check in found)
    kept = "the registered version still holds; nothing else is broken"
    return Outcome([check.name for check in found] == [path], "`dualipo verify`", told or "nothing", kept)


def _label_gate(lab: Lab, folder: Path, sees: str) -> Outcome:
    ended = lab.call(folder, "check_labels")
    if ended.how != "done":
        return Outcome(False, "label gate", f"{ended.how}: {ended.message}", "")
    return lab.judged(folder, "label_gate", ("critic", "generator"), sees)


def _critic_gate(lab: Lab, folder: Path, changes: dict[str, dict[str, Any]], sees: str) -> Outcome:
    update = {name: getattr(lab.config, name).model_copy(update=values) for name, values in changes.items()}
    ended = lab.call(folder, "train_critic", config=lab.config.model_copy(update=update))
    return _judged_critic(lab, folder, lab.call(folder, "check_critic") if ended.how == "done" else ended, sees)


def _judged_critic(lab: Lab, folder: Path, ended: Ended, sees: str) -> Outcome:
    if ended.how != "done":
        return Outcome(False, "critic gate", f"{ended.how}: {ended.message}", "")
    return lab.judged(folder, "critic_gate", ("critic",), sees)


def _benchmarked(lab: Lab, folder: Path, ended: Ended) -> Outcome:
    if ended.how == "done":
        ended = lab.call(folder, "promote_generator")
    if ended.how == "refused":
        return Outcome(True, "promotion", ended.message.replace(f"{folder}/", ""), "nothing was handed on")
    if ended.how != "done":
        return Outcome(False, "promotion", f"{ended.how}: {ended.message}", "")
    decided = lab.decided(folder, "generator")
    by_benchmark = any(reason.startswith("benchmark") for reason in decided.reasons)
    caught = by_benchmark and not decided.promoted and lab.incumbent_stays(folder, "generator")
    kept = "generator of the round before handed on, md5 unchanged"
    return Outcome(caught, "benchmark" if by_benchmark else "promotion", decided.reasons[0], kept)


def _add_noise(path: Path, share: float = 0.5) -> None:
    """To each weight, of `share` of its tensor's standard deviation."""
    import torch
    from safetensors.torch import load_file, save_file

    weights, random = load_file(path), torch.Generator().manual_seed(0)
    for name, weight in weights.items():
        if weight.numel() > 1:
            weights[name] = weight + share * weight.std() * torch.randn(weight.shape, generator=random)
    save_file(weights, path, {"format": "pt"})


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _replace_folder(target: Path, source: Path) -> None:
    shutil.rmtree(target)
    shutil.copytree(source, target)


def _prompts(table: Path) -> list[str]:
    import csv

    with open(table, newline="", encoding="utf-8") as file:
        return [row["prompt"] for row in csv.DictReader(file)]
