"""README and docs speak of what is there: links, files, tests, commands, parameters and their defaults."""

import re
from pathlib import Path

import pytest

from dualipo.cli import cli
from dualipo.config import Config

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
TEXTS = {str(page.relative_to(REPOSITORY)): page.read_text(encoding="utf-8") for page in PAGES}
BLOCK = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def tests() -> set[str]:
    code = "\n".join(file.read_text(encoding="utf-8") for file in (REPOSITORY / "tests").glob("test_*.py"))
    return set(re.findall(r"^\s*(?:async )?def (test_\w+)", code, re.MULTILINE))


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    text = BLOCK.sub("", TEXTS[name])
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    assert not [target for target in targets if target and not (REPOSITORY / name).parent.joinpath(target).exists()]


@pytest.mark.parametrize("name", TEXTS)
def test_files_that_are_named_exist(name):
    named = re.findall(
        r"(?<![\w/.-])((?:benchmarks|components|dualipo|k8s|pipelines|tests)/[\w/.-]+\.(?:py|yaml))", TEXTS[name]
    )
    assert not [path for path in named if not (REPOSITORY / path).is_file()]


@pytest.mark.parametrize("name", TEXTS)
def test_tests_that_are_named_exist(name, tests):
    named = set(re.findall(r"`(?:\w+\.py::)?(test_\w+)`", TEXTS[name])) - {
        Path(file).stem for file in REPOSITORY.glob("tests/*.py")
    }
    assert not named - tests


@pytest.mark.parametrize("name", TEXTS)
def test_commands_that_are_named_exist(name):
    text = TEXTS[name]
    lines = [line for block in BLOCK.findall(text) for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", text)
    for line in lines:
        if match := re.match(r"(?:\$ )?dualipo ([a-z][a-z_-]+)(?: ([a-z][a-z_-]+)\b)?", line):
            group, word = match.groups()
            command = cli.get_command(None, group)
            assert command is not None, line
            if word and hasattr(command, "commands"):
                assert command.get_command(None, word) is not None, line


@pytest.mark.parametrize("name", TEXTS)
def test_parameters_have_the_defaults_that_are_told(name):
    defaults = Config().model_dump()
    for section, key, value in re.findall(r"`(\w+)\.(\w+)` \((\d[\d.e-]*)", TEXTS[name]):
        if section in defaults:
            assert defaults[section].get(key) == float(value), f"{section}.{key} is {defaults[section].get(key)}"


@pytest.mark.parametrize("name", TEXTS)
def test_parameters_that_are_named_exist(name):
    sections = Config().model_dump()
    for section, key in re.findall(r"`(?:-S )?(\w+)\.(\w+)(?:=[^`]*|: [^`]*)?`", TEXTS[name]):
        if section in sections and isinstance(sections[section], dict) and key not in ("py", "yaml", "json", "jsonl"):
            assert key in sections[section], f"{section}.{key}"
