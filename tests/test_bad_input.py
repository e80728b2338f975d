"""Bad input through the command line: one sentence, a status that is not 0, and nothing half-written left behind."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dualipo import cli
from dualipo.config import load_config
from dualipo.records import Prompt, write_rows
from dualipo.world.shrink import MODELS, shrink

DUALIPO = Path(sys.executable).with_name("dualipo")


@pytest.fixture(scope="session")
def data(repository, tmp_path_factory) -> Path:
    return shrink(repository / "data", tmp_path_factory.mktemp("small") / "data", 1, 1, 2, 2)


@pytest.fixture
def folder(data, repository, tmp_path, monkeypatch) -> Path:
    """An experiment's folder of the test's own; the models' files are links, so put new ones in their place."""
    folder = tmp_path / "experiment"
    folder.mkdir()
    shutil.copytree(data, folder / "data", ignore=shutil.ignore_patterns(*MODELS))
    for name in MODELS:
        shutil.copytree(data / name, folder / "data" / name, copy_function=os.link)
    config = load_config(repository / "params.yaml", repository / "params/smoke.yaml")
    (folder / "params.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def dualipo(monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    """The command line's own door, in this process: its exit status and what it says on stderr."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["dualipo", *map(str, arguments)])
        before = signal.getsignal(signal.SIGTERM)
        try:
            with pytest.raises(SystemExit) as end:
                cli.main()
        finally:
            signal.signal(signal.SIGTERM, before)
        return end.value.code, capsys.readouterr().err

    return call


def sentence(told: str) -> str:
    """The one line that is not a progress bar's."""
    [line] = [line for line in told.splitlines() if line.strip() and "%|" not in line]
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def half_written(folder: Path) -> list[Path]:
    """What a refused command may not leave: outputs, staged ones, files on their way."""
    staged = [path for path in (folder / ".dualipo/staging").glob("*")]
    partial = [path for path in folder.rglob("*") if path.name.endswith((".partial", ".old"))]
    return [*staged, *partial, *(folder / "runs").glob("**/*"), *folder.glob("mlflow.db")]


def rewrite(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(change(lines)))


def first_clip(folder: Path) -> Path:
    return min((folder / "clips").glob("*.mp4"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace_verdict(path: Path, verdict: str) -> None:
    """In the first row."""
    rewrite(path, lambda lines: [lines[0], re.sub(r",(a|b|tie|good|normal|bad),", f",{verdict},", lines[1], count=1)])


def as_jsonl_with_nan(path: Path) -> None:
    import csv

    rows = list(csv.DictReader(path.read_text().splitlines()))
    rows[2]["verdict"] = float("nan")
    path.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path.unlink()


def copy_prompts_of_the_test(data: Path) -> None:
    import csv

    stolen = next(csv.DictReader((data / "test/choices.csv").read_text().splitlines()))["prompt"]
    own = next(csv.DictReader((data / "seed/choices.csv").read_text().splitlines()))["prompt"]
    rewrite(data / "seed/choices.csv", lambda lines: [line.replace(own, stolen) for line in lines])


DAMAGES = {
    "a truncated seed clip": (
        lambda data: cut(first_clip(data / "seed")),
        r"data/seed/clips/\S+\.mp4: .*(truncated|not a readable clip).*; replace it or drop its rows",
    ),
    "a truncated test clip": (
        lambda data: cut(first_clip(data / "test")),
        r"data/test/clips/\S+\.mp4: .*; replace it or drop its rows",
    ),
    "a truncated real clip": (
        lambda data: cut(first_clip(data / "real")),
        r"data/real/clips/\S+\.mp4: .*; replace it or drop its rows",
    ),
    "an empty clip": (
        lambda data: first_clip(data / "seed").write_bytes(b""),
        r"data/seed/clips/\S+\.mp4: not a readable clip .*; replace it or drop its rows",
    ),
    "an empty CSV": (
        lambda data: (data / "seed/ratings.csv").write_text(""),
        r"data/seed/ratings.csv: the table is empty; at least one HumanRating row is needed",
    ),
    "a CSV of nothing but its header": (
        lambda data: rewrite(data / "test/choices.csv", lambda lines: lines[:1]),
        r"data/test/choices.csv: the table is empty; at least one HumanChoice row is needed",
    ),
    "no captions": (
        lambda data: (data / "real/captions.csv").write_text(""),
        r"data/real/captions.csv: the table is empty",
    ),
    "an empty benchmark": (
        lambda data: (data / "benchmark.jsonl").write_text("\n"),
        r"data/benchmark.jsonl: the table is empty",
    ),
    "a NaN in a CSV of labels": (
        lambda data: replace_verdict(data / "seed/ratings.csv", "nan"),
        r"data/seed/ratings.csv, line 2: verdict: .*'good', 'normal' or 'bad'.* \(found 'nan'\)",
    ),
    "a NaN in a JSONL of labels": (
        lambda data: as_jsonl_with_nan(data / "test/choices.csv"),
        r"data/test/choices.jsonl, line 3: verdict: .*'a', 'b' or 'tie'.* \(found nan\)",
    ),
    "an empty cell": (
        lambda data: replace_verdict(data / "seed/choices.csv", ""),
        r"data/seed/choices.csv, line 2: verdict: .* \(found ''\)",
    ),
    "an unknown verdict": (
        lambda data: replace_verdict(data / "test/ratings.csv", "great"),
        r"data/test/ratings.csv, line 2: verdict: .* \(found 'great'\)",
    ),
    "a column too few": (
        lambda data: rewrite(data / "seed/choices.csv", lambda lines: [lines[0].replace(",reason", ""), *lines[1:]]),
        r"data/seed/choices.csv, line 2: ",
    ),
    "a clip that is not there": (
        lambda data: first_clip(data / "seed").unlink(),
        r"data/seed/clips/\S+\.mp4: no such clip",
    ),
    "two tables of one kind": (
        lambda data: shutil.copy(data / "seed/ratings.csv", data / "seed/ratings.jsonl"),
        r"data/seed: exactly one of ratings.csv and ratings.jsonl is needed, both exist",
    ),
    "test prompts among the seed labels": (
        copy_prompts_of_the_test,
        r"data/seed: prompt '.*' also stands in the human test set, which must be apart from everything",
    ),
    "no generator": (
        lambda data: shutil.rmtree(data / "generator"),
        r"data/generator: missing, start needs it; fetch the data with `dvc pull data.dvc`, or name a folder",
    ),
    "no critic": (lambda data: shutil.rmtree(data / "critic"), r"data/critic: missing, start needs it; fetch the data"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_data_folder_is_refused_before_anything_is_made(folder, dualipo, name):
    damage, expected = DAMAGES[name]
    damage(folder / "data")
    status, told = dualipo("start")
    assert status == 2
    assert re.match(expected, sentence(told)), told
    assert half_written(folder) == []


@pytest.mark.parametrize(
    ("damage", "arguments", "expected"),
    [
        (lambda data: cut(first_clip(data / "seed")), ["run"], r"data/seed/clips/\S+\.mp4: "),
        (lambda data: shutil.rmtree(data / "critic"), ["start"], r"data/critic: missing, start needs it; fetch"),
        (None, ["run", "-S", "align.betta=1"], r"params.yaml: unknown key 'align.betta'; known here: loss, beta"),
        (None, ["align", "--round", "7"], r"round '7' is not among the parameters' rounds; known: 1, 2"),
    ],
    ids=["truncated clip", "no critic", "unknown key", "unknown round"],
)
def test_a_process_of_its_own_says_and_exits_the_same(folder, damage, arguments, expected):
    if damage:
        damage(folder / "data")
    ended = subprocess.run([DUALIPO, *arguments], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2 and ended.stdout == ""
    assert re.match(expected, sentence(ended.stderr)), ended.stderr
    assert half_written(folder) == []


# ---- parameters


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("align:", "align:\n  betta: 1"), r"params.yaml: unknown key 'align.betta'; known here: loss, beta, .*"),
        (
            ("align:", "alignment:"),
            r"params.yaml: unknown key 'alignment'; known here: experiment, models, prompts, .*",
        ),
        (("prompts:", "prompts: [1"), r"params.yaml: not valid YAML: .*"),
        (("count: 18", "count: .nan"), r"params.yaml: prompts.count: .* \(found nan\)"),
        (("count: 18", "count: many"), r"params.yaml: prompts.count: .* \(found 'many'\)"),
        (("prev: '1'", "prev: '5'"), r"params.yaml: rounds: round 2 follows '5', which does not stand above it$"),
    ],
    ids=["unknown key", "unknown section", "no YAML", "NaN", "no number", "unknown previous round"],
)
@pytest.mark.parametrize("command", [["run"], ["generate", "--round", "1"], ["lineage", "critic"]], ids=" ".join)
def test_unusable_parameters_are_refused_by_every_command(folder, dualipo, change, expected, command):
    file = folder / "params.yaml"
    assert change[0] in file.read_text()
    file.write_text(file.read_text().replace(*change, 1))
    status, told = dualipo(*command)
    assert status == 2 and re.match(expected, sentence(told)), told
    assert half_written(folder) == [] and not (folder / ".dualipo").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["align", "--round", "9"], r"round '9' is not among the parameters' rounds; known: 1, 2"),
        (["run", "--until", "9"], r"until '9': no such round or step; use a round such as 1"),
        (["run", "--until", "1/aline"], r"until '1/aline': no such round or step"),
        (
            ["prompts", "--round", "1", "-S", "prompts.schedule={'4': {simple: 1}}"],
            r"prompts.schedule: '4' is no round",
        ),
        (["prompts", "--round", "1", "-S", "prompts.space=mars"], r"mars: "),
    ],
)
def test_unknown_rounds_and_spaces_are_refused(folder, dualipo, arguments, expected):
    status, told = dualipo(*arguments)
    assert status == 2 and re.match(expected, sentence(told)), told
    assert half_written(folder) == []


# ---- checkpoints


@pytest.fixture
def asked(folder) -> Path:
    """A round's prompts, as `generate --prompts` takes them."""
    path = folder.with_name("prompts.jsonl")
    lines = (folder / "data/benchmark.jsonl").read_text().splitlines()
    write_rows(path, [Prompt.model_validate_json(line) for line in lines])
    return path


def as_pickles(model: Path) -> None:
    """The same weights, in the file that a download of a few years ago holds."""
    import torch
    from safetensors.torch import load_file

    for path in list(model.rglob("*.safetensors")):
        name = {"model.safetensors": "pytorch_model.bin"}.get(path.name, f"{path.stem}.bin")
        torch.save(load_file(path), path.with_name(name))
        path.unlink()


def emptied(model: Path) -> None:
    shutil.rmtree(model)
    model.mkdir()


def cut_weights(model: Path) -> None:
    path = max(model.rglob("*.safetensors"), key=lambda found: found.stat().st_size)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (
            as_pickles,
            r"{model}: the checkpoint does not load \(.*safetensors.*\); put a whole one there, with .* safetensors$",
        ),
        (cut_weights, r"{model}: the checkpoint does not load \(.*\); put a whole one there, with .* safetensors$"),
        (emptied, r"{model}: no {kind} checkpoint here \(\S+ is missing\); put a \w+ folder there"),
        (shutil.rmtree, r"{model}: missing, .* needs it"),
    ],
    ids=["pickled", "truncated", "empty", "absent"],
)
@pytest.mark.parametrize("kind", ["generator", "critic"])
def test_an_unusable_checkpoint_is_refused(folder, asked, dualipo, kind, damage, expected):
    damage(folder / "data" / kind)
    if kind == "generator":
        status, told = dualipo("generate", "--round", "1", "--prompts", asked, "--generator", "data/generator")
    else:
        # start is the first step that opens a critic.
        status, told = dualipo("start")
    assert status == 2
    assert re.match(expected.format(model=f"data/{kind}", kind=kind), sentence(told)), told
    assert half_written(folder) == []


# ---- full disks


@pytest.fixture(params=["tmpfs", "limit"])
def cramped(request, folder, tmp_path):
    """(experiment's folder in which little has room, how the message begins, what makes room)."""
    small = tmp_path / "small"
    small.mkdir()
    if request.param == "tmpfs":
        mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(small)]
        if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("a file system can't be mounted here")
        shutil.copy(folder / "params.yaml", small)
        filler = small / "filler"
        free = shutil.disk_usage(small).free
        filler.write_bytes(bytes(free - 16 * 1024))
        yield small, "the disk is full while writing under", filler.unlink
        subprocess.run(["umount", "--lazy", str(small)], check=True)  # MLflow keeps its database open
    else:
        shutil.copy(folder / "params.yaml", small)
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 1024, limit[1]))

        def lift() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

        yield small, "a file grew over the allowed size while writing under", lift
        lift()


@pytest.mark.parametrize("step", ["prompts", "generate"])
def test_a_full_disk_is_one_sentence_and_the_same_command_goes_on(folder, asked, dualipo, cramped, step):
    small, begins, make_room = cramped
    arguments = [step, "--round", "1", "--folder", small, "--data", folder / "data"]
    if step == "prompts":
        arguments += ["-S", "prompts.count=200"]
    else:
        arguments += ["--prompts", asked, "--generator", folder / "data/generator", "-S", "generate.candidates=16"]
    status, told = dualipo(*arguments)
    assert status == 2
    assert re.match(rf"round 1, {step}: {begins} {small}; .*: make room and run the same command again", sentence(told))
    assert half_written(small) == []
    make_room()
    status, told = dualipo(*arguments)
    assert status == 0, told
    assert (small / "runs/1" / ("prompts.jsonl" if step == "prompts" else "candidates/manifest.jsonl")).is_file()
    assert not [path for kind in ("staging", "work") for path in (small / ".dualipo" / kind).iterdir()]
