"""A prompt space: one YAML file of categories, factors, rules and templates, validated by frozen models.

A *category* is audited and drawn in exact shares. A *factor* is one discrete choice with its vocabulary. A *cell* is
one combination of category values; within it the factors span a grid of tuples, of which rules exclude or remap some,
and one template turns each into a sentence. docs/prompts.md describes the file.
"""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from dualipo.config import NonNegative, Section
from dualipo.errors import UserError

SPACES = Path(__file__).parent / "spaces"
MAX_CELLS = 4096
MAX_VALUES = 65535
NOT = "not "
"""Before a factor's value or tag in a condition: everything else."""
_VOWEL_SOUND = re.compile(r"(?!eu|one\b|once\b|uni(?!n)|us[eu]|uti|uku)[aeiou]|hour|honest|heir", re.IGNORECASE)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _named(value: Any) -> Any:
    if isinstance(value, str):
        return {"name": value, "text": value}
    if isinstance(value, dict) and len(value) == 1:
        name, text = next(iter(value.items()))
        return {"name": name, "text": text}
    return value


def _grouped(value: Any) -> Any:
    return {"": value} if isinstance(value, list) else value


class Value(Section):
    """One entry of a vocabulary; in YAML `name` or `name: text` where the sentence says it otherwise."""

    name: str = Field(min_length=1)
    text: str

    @property
    def with_article(self) -> str:
        return f"{'an' if _VOWEL_SOUND.match(self.text) else 'a'} {self.text}"


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Values = Annotated[tuple[Annotated[Value, BeforeValidator(_named)], ...], Field(min_length=1)]
Condition = dict[str, Annotated[Names, Field(min_length=1)]]
"""Category or factor -> its values (for a factor also tags, and `not <value or tag>`) of which one must hold; all
entries must hold together."""


class Factor(Section):
    """One discrete choice and its vocabulary."""

    when: Condition = Field({})
    """Categories under which the factor exists."""
    by: Names = ()
    """Categories that choose the vocabulary: `values` is then keyed by their values, joined by `/`; where a key is
    missing the factor does not exist."""
    values: Annotated[dict[str, Values], BeforeValidator(_grouped), Field(min_length=1)]
    """In YAML a list, or a mapping from tag to list (from category values to list with `by`)."""
    tags: dict[str, Names] = Field({})
    """Further names for sets of values, for rules."""

    def vocabulary(self, categories: Mapping[str, str]) -> tuple[Value, ...]:
        """The values to choose from in a cell; empty where the factor does not exist there."""
        if any(categories[key] not in allowed for key, allowed in self.when.items()):
            return ()
        if self.by:
            return self.values.get("/".join(categories[key] for key in self.by), ())
        return self.every_value()

    def every_value(self) -> tuple[Value, ...]:
        return tuple(itertools.chain.from_iterable(self.values.values()))

    def tagged(self) -> dict[str, set[str]]:
        """Tag -> value names."""
        found = {tag: set(names) for tag, names in self.tags.items()}
        if not self.by:
            for tag, words in self.values.items():
                found.setdefault(tag, set()).update(word.name for word in words)
        return found

    def expand(self, wanted: tuple[str, ...]) -> frozenset[str]:
        """Value names behind names, tags, and either of them after `not `."""
        tagged, names = self.tagged(), frozenset(value.name for value in self.every_value())
        found: set[str] = set()
        for name in wanted:
            plain = name.removeprefix(NOT)
            members = tagged.get(plain, {plain})
            found |= members if plain == name else names - members
        return frozenset(found)

    def known(self) -> set[str]:
        plain = {value.name for value in self.every_value()} | self.tagged().keys()
        return plain | {NOT + name for name in plain}


class Exclusion(Section):
    """Tuples that are never drawn: those where all of `when` and `equal` hold, and not all of `unless`."""

    name: str = Field(min_length=1)
    when: Condition = Field({})
    unless: Condition = Field({})
    equal: Names = ()
    """Factors that hold the same value."""

    @model_validator(mode="after")
    def _says_something(self) -> Exclusion:
        if not self.when and len(self.equal) < 2:
            raise ValueError("a rule needs `when`, or two factors under `equal`")
        return self


class Remap(Exclusion):
    """Tuples that are moved to a stylised domain: `to` names the values they get.

    Factors under `to` are redrawn in place. Categories under `to` are never changed, so that shares stay exact: the
    tuple is refused where they do not hold, and reached from the cells where they do.
    """

    to: Condition = Field(min_length=1)


class Template(Section):
    """A sentence for the cells where `when` holds: `{factor}`, or `{factor:a}` with its indefinite article."""

    when: Condition = Field({})
    text: str = Field(min_length=1)

    def parts(self) -> list[tuple[str, str | None, bool]]:
        """(literal, factor or None, with article) in order."""
        return [(literal, name, spec == "a") for literal, name, spec, _ in string.Formatter().parse(self.text)]


@dataclass(frozen=True)
class Cell:
    """One combination of category values."""

    categories: dict[str, str]
    factors: tuple[str, ...]
    """Factors that exist here, in the file's order."""
    vocabularies: tuple[tuple[Value, ...], ...]
    template: Template


class PromptSpace(Section):
    name: str = Field(min_length=1)
    about: str = ""
    categories: dict[str, Annotated[dict[str, NonNegative], Field(min_length=1)]] = Field(min_length=1)
    """Audited categories: value -> target share; each category's shares sum to 1."""
    factors: dict[str, Factor] = Field(min_length=1)
    exclude: tuple[Exclusion, ...] = ()
    remap: tuple[Remap, ...] = ()
    """Applied in order, before the exclusions."""
    forbidden: tuple[str, ...] = ()
    """Words that no vocabulary and no template may hold, whole words in any case; checked when the file is read."""
    templates: tuple[Template, ...] = Field(min_length=1)
    """The first whose `when` holds makes the sentence."""

    @property
    def rules(self) -> tuple[Exclusion, ...]:
        return (*self.remap, *self.exclude)

    def target(self, override: Mapping[str, Mapping[str, float]], where: str = "target") -> dict[str, dict[str, float]]:
        """Target shares of every value of every category, an overridden category's taken whole, summing to 1.

        Raises UserError where a category or value is unknown or the shares do not sum to 1.
        """
        merged: dict[str, dict[str, float]] = {}
        for category in override:
            if category not in self.categories:
                raise UserError(
                    f"{where}: space {self.name!r} has no category {category!r}; known: {', '.join(self.categories)}"
                )
        for category, own in self.categories.items():
            shares = override.get(category, own)
            for value, share in shares.items():
                if value not in own:
                    raise UserError(f"{where}: {category} has no value {value!r}; known: {', '.join(own)}")
                if not share >= 0:
                    raise UserError(f"{where}: the share of {category} {value!r} is {share}; it must be 0 or more")
            total = sum(shares.values())
            if abs(total - 1) > 1e-3:
                raise UserError(f"{where}: the shares of {category} sum to {total:.6g}; they must sum to 1")
            merged[category] = {value: shares.get(value, 0.0) / total for value in own}
        return merged

    def cells(self) -> Iterator[Cell]:
        """Every cell that no rule on categories alone empties."""
        for combination in itertools.product(*self.categories.values()):
            categories = dict(zip(self.categories, combination, strict=True))
            if self.emptied_by(categories) is None:
                yield self._cell(categories)

    def emptied_by(self, categories: Mapping[str, str]) -> str | None:
        """Name of the first rule that, by categories alone, refuses a whole cell."""
        for rule in self.rules:
            if rule.equal or not rule.when.keys() | rule.unless.keys() <= self.categories.keys():
                continue
            spared = bool(rule.unless) and self._holds(rule.unless, categories)
            moved = isinstance(rule, Remap) and self._holds(rule.to, categories)
            if self._holds(rule.when, categories) and not spared and not moved:
                return rule.name
        return None

    def _holds(self, condition: Condition, categories: Mapping[str, str]) -> bool:
        """Whether the entries on categories hold; entries on factors are left aside."""
        return all(categories[key] in allowed for key, allowed in condition.items() if key in categories)

    def _cell(self, categories: dict[str, str]) -> Cell:
        active = {name: words for name, f in self.factors.items() if (words := f.vocabulary(categories))}
        for template in self.templates:
            if self._holds(template.when, categories):
                return Cell(categories, tuple(active), tuple(active.values()), template)
        raise ValueError(f"no template holds for {_spoken(categories)}")

    @model_validator(mode="after")
    def _consistent(self) -> PromptSpace:
        if clash := self.categories.keys() & self.factors.keys():
            raise ValueError(f"{sorted(clash)[0]!r} names both a category and a factor")
        if len(list(itertools.product(*self.categories.values()))) > MAX_CELLS:
            raise ValueError(f"categories: more than {MAX_CELLS} combinations; merge or drop a category")
        self.target({}, "categories")
        for name, factor in self.factors.items():
            self._check_factor(name, factor)
        names = [rule.name for rule in self.rules]
        if doubled := {name for name in names if names.count(name) > 1} | (set(names) & {"held_out", "repeat"}):
            raise ValueError(f"rule name {sorted(doubled)[0]!r} is used twice or reserved")
        for kind, rules in (("exclude", self.exclude), ("remap", self.remap)):
            for rule in rules:
                for part in (rule.when, rule.unless, getattr(rule, "to", {})):
                    self._check_condition(f"{kind} {rule.name!r}", part, factors=True)
                for name in rule.equal:
                    if name not in self.factors:
                        raise ValueError(f"{kind} {rule.name!r}: unknown factor {name!r} under equal")
        for number, template in enumerate(self.templates, start=1):
            self._check_template(f"template {number}", template)
        self._check_forbidden()
        for cell in self.cells():
            self._check_cell(cell)
        return self

    def _check_factor(self, name: str, factor: Factor) -> None:
        where = f"factor {name!r}"
        self._check_condition(where, factor.when, factors=False)
        for category in factor.by:
            if category not in self.categories:
                raise ValueError(f"{where}: by names {category!r}, which is no category")
        if factor.by:
            possible = {"/".join(key) for key in itertools.product(*(self.categories[c] for c in factor.by))}
            for key in factor.values:
                if key not in possible:
                    raise ValueError(f"{where}: values holds {key!r}; possible keys: {', '.join(sorted(possible))}")
        words = {value.name for value in factor.every_value()}
        for tag, members in factor.tagged().items():
            if unknown := members - words:
                raise ValueError(f"{where}: tag {tag!r} names the unknown value {sorted(unknown)[0]!r}")
            if tag in words:
                raise ValueError(f"{where}: {tag!r} is both a tag and a value")
        if reserved := [word for word in sorted(words) if word.startswith(NOT)]:
            raise ValueError(f"{where}: {reserved[0]!r} starts with {NOT!r}, which conditions keep for themselves")

    def _check_condition(self, where: str, condition: Condition, *, factors: bool) -> None:
        for key, wanted in condition.items():
            if key in self.categories:
                known = set(self.categories[key])
            elif factors and key in self.factors:
                known = self.factors[key].known()
            else:
                raise ValueError(f"{where}: unknown {'category or factor' if factors else 'category'} {key!r}")
            if unknown := set(wanted) - known:
                raise ValueError(f"{where}: {key} has no value{' or tag' * factors} {sorted(unknown)[0]!r}")

    def _check_template(self, where: str, template: Template) -> None:
        self._check_condition(where, template.when, factors=False)
        try:
            fields = list(string.Formatter().parse(template.text))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        for _, name, spec, conversion in fields:
            if name is not None and name not in self.factors:
                raise ValueError(f"{where}: {{{name}}} is no factor")
            if spec not in (None, "", "a") or conversion:
                raise ValueError(f"{where}: only {{factor}} and {{factor:a}} are understood")

    def _check_forbidden(self) -> None:
        if not self.forbidden:
            return
        words = re.compile(rf"\b(?:{'|'.join(map(re.escape, self.forbidden))})\b", re.IGNORECASE)
        texts = [(f"factor {name!r}", v.text) for name, f in self.factors.items() for v in f.every_value()]
        texts += [(f"template {n}", template.text) for n, template in enumerate(self.templates, start=1)]
        for where, text in texts:
            if found := words.search(text):
                raise ValueError(f"{where}: {text!r} holds the forbidden word {found.group().lower()!r}")

    def _check_cell(self, cell: Cell) -> None:
        """Every choice shows in the sentence, so that distinct tuples are distinct prompts."""
        said = {name for _, name, _ in cell.template.parts() if name is not None}
        if absent := said - set(cell.factors):
            raise ValueError(
                f"the template for {_spoken(cell.categories)} uses {{{sorted(absent)[0]}}}, which has no values there"
            )
        for factor, words in zip(cell.factors, cell.vocabularies, strict=True):
            if len(words) > MAX_VALUES:
                raise ValueError(f"factor {factor!r}: more than {MAX_VALUES} values")
            for what in ("name", "text"):
                seen = [getattr(word, what) for word in words]
                if len(set(seen)) < len(seen):
                    twice = next(s for s in seen if seen.count(s) > 1)
                    raise ValueError(f"factor {factor!r}: {what} {twice!r} stands twice for {_spoken(cell.categories)}")
            if len(words) > 1 and factor not in said:
                raise ValueError(f"the template for {_spoken(cell.categories)} never says {{{factor}}}")


def _spoken(categories: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in categories.items())


def shipped_spaces() -> list[str]:
    return sorted(file.stem for file in SPACES.glob("*.yaml"))


def load_space(name_or_path: str | Path) -> PromptSpace:
    """Reads a shipped space by its name, or any space by its path.

    Raises UserError where the file is missing, is no YAML mapping, or does not hold together; it names file and key.
    """
    path = Path(name_or_path)
    if str(name_or_path) in shipped_spaces():
        path = SPACES / f"{name_or_path}.yaml"
    if not path.is_file():
        raise UserError(
            f"{name_or_path}: no such prompt space; name one of {', '.join(shipped_spaces())}, or a YAML file"
        )
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a mapping was expected, found {type(content).__name__}")
    content.setdefault("name", path.stem)
    try:
        return PromptSpace.model_validate(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except ValidationError as error:
        raise UserError(f"{path}: {_first_problem(error)}") from None


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(part for part in path if part) or "top level"
    if first["type"] == "extra_forbidden":
        models: dict[str, type[Section]] = {
            "factors": Factor, "exclude": Exclusion, "remap": Remap, "templates": Template,
        }  # fmt: skip
        model = models[path[0]] if len(path) == 3 else Value if len(path) > 3 else PromptSpace
        return f"unknown key {key!r}; known here: {', '.join(model.model_fields)}"
    message = first["msg"].removeprefix("Value error, ")
    return message if key == "top level" else f"{key}: {message}"
