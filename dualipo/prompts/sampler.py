"""Exact-share sampling of a prompt space, vectorised over prompts.

Quotas come first (quotas.py), then each cell draws its tuples without replacement, then a shuffle mixes the cells. Rows
are turned into text only while they are read, block by block, so that a million prompts need little memory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dualipo.artifacts import atomic
from dualipo.errors import UserError
from dualipo.prompts.quotas import Infeasible, joint_quotas
from dualipo.prompts.space import Cell, Exclusion, PromptSpace, Remap
from dualipo.records import Prompt

Target = Mapping[str, Mapping[str, float]]
SMALL = 1 << 16
"""Grids up to this size are enumerated before quotas are set; larger ones are probed with as many draws / 4."""
BLOCK = 1 << 12
"""Prompts turned into text at once."""
ACCEPTED, HELD_OUT, REPEAT = 0, -1, -2
"""Verdicts on a tuple; a positive verdict is 1 + the index of the rule that refuses it."""


def normal(text: str) -> str:
    """What makes two prompts the same one: case, white space and a closing full stop do not count."""
    return " ".join(text.split()).rstrip(".").rstrip().casefold()


@dataclass
class Draw:
    """Prompts drawn but not yet written out; every method gives the same prompts in the same order."""

    target: dict[str, dict[str, float]]
    dropped: dict[str, int]
    """Tuples refused, by rule; `held_out` counts excluded texts."""
    remapped: dict[str, int]
    """Tuples redrawn by a remap, by the last rule that did, whether kept or refused thereafter."""
    repeated: int
    """Prompts whose text stands earlier in the draw, because their cell held no more distinct ones."""
    _cells: list[_Cell] = field(repr=False)
    _rows: list[np.ndarray] = field(repr=False)
    _order: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self._order)

    def _blocks(self) -> Iterator[tuple[int, np.ndarray, list[tuple[_Cell, np.ndarray, np.ndarray]]]]:
        """(first position, cell of each position, [(cell, positions in the block, tuples)])."""
        taken = np.zeros(len(self._cells), np.int64)
        for start in range(0, len(self._order), BLOCK):
            block = self._order[start : start + BLOCK]
            parts = []
            for index in np.unique(block):
                at = np.flatnonzero(block == index)
                parts.append((self._cells[index], at, self._rows[index][taken[index] : taken[index] + len(at)]))
                taken[index] += len(at)
            yield start, block, parts

    def prompts(self, prefix: str = "p") -> Iterator[Prompt]:
        """Rows with ids `<prefix>-0001` and so on."""
        for start, block, parts in self._blocks():
            rows: dict[int, Prompt] = {}
            ids = self._ids(prefix, start, len(block))
            for cell, at, digits in parts:
                for position, text, attributes in zip(
                    at.tolist(), cell.texts(digits), cell.attributes(digits), strict=True
                ):
                    rows[position] = Prompt(
                        id=ids[position], text=text, categories=cell.cell.categories, attributes=attributes
                    )
            yield from (rows[position] for position in range(len(block)))

    def lines(self, prefix: str = "p") -> Iterator[str]:
        """The same rows as JSON lines, byte for byte as `write_rows` writes them, some times faster."""
        for start, block, parts in self._blocks():
            lines = [""] * len(block)
            ids = np.array([_escaped(i) for i in self._ids(prefix, start, len(block))], object)
            for cell, at, digits in parts:
                for position, line in zip(at.tolist(), cell.lines(ids[at], digits), strict=True):
                    lines[position] = line
            yield "".join(lines)

    def _ids(self, prefix: str, start: int, count: int) -> list[str]:
        width = max(4, len(str(len(self))))
        return [f"{prefix}-{number:0{width}d}" for number in range(start + 1, start + count + 1)]


class _Cell:
    """A cell made ready for arrays: a tuple is a row of value indices, uint16 (factors,)."""

    def __init__(self, space: PromptSpace, cell: Cell):
        self.cell = cell
        self.sizes = [len(words) for words in cell.vocabularies]
        self.size = int(np.prod(self.sizes, dtype=float)) if self.sizes else 1
        self.rules = [_Rule.compile(space, cell, rule) for rule in space.rules]
        self.names = [np.array([w.name for w in words], object) for words in cell.vocabularies]
        column = {name: index for index, name in enumerate(cell.factors)}
        pattern, escaped, self._said, self._said_escaped = "", "", [], []
        for literal, name, article in cell.template.parts():
            pattern += literal.replace("%", "%%")
            escaped += _escaped(literal).replace("%", "%%")
            if name is not None:
                words = [w.with_article if article else w.text for w in cell.vocabularies[column[name]]]
                self._said.append((column[name], np.array(words, object)))
                self._said_escaped.append((column[name], np.array([_escaped(w) for w in words], object)))
                pattern, escaped = pattern + "%s", escaped + "%s"
        self._pattern = pattern
        categories = json.dumps(cell.categories, ensure_ascii=False, separators=(",", ":")).replace("%", "%%")
        keys = ",".join(f'"{_escaped(name)}":"%s"'.replace("%", "%%").replace("%%s", "%s") for name in cell.factors)
        self._line = f'{{"id":"%s","text":"{escaped}","categories":{categories},"attributes":{{{keys}}}}}\n'
        self._said_escaped += [
            (index, np.array([_escaped(name) for name in names], object)) for index, names in enumerate(self.names)
        ]

    def texts(self, digits: np.ndarray) -> list[str]:
        return _filled(self._pattern, [words[digits[:, c]] for c, words in self._said], len(digits))

    def attributes(self, digits: np.ndarray) -> Iterator[dict[str, str]]:
        columns = [names[digits[:, c]].tolist() for c, names in enumerate(self.names)]
        rows = zip(*columns, strict=True) if columns else [()] * len(digits)
        return (dict(zip(self.cell.factors, row, strict=True)) for row in rows)

    def lines(self, ids: np.ndarray, digits: np.ndarray) -> list[str]:
        return _filled(self._line, [ids, *(words[digits[:, c]] for c, words in self._said_escaped)], len(digits))

    def grid(self, rng: np.random.Generator) -> np.ndarray:
        """Every tuple once, in random order."""
        index, digits = rng.permutation(self.size), np.empty((self.size, len(self.sizes)), np.uint16)
        for column, size in enumerate(self.sizes):
            index, digits[:, column] = np.divmod(index, size)
        return digits

    def random(self, count: int, rng: np.random.Generator) -> np.ndarray:
        digits = np.empty((count, len(self.sizes)), np.uint16)
        for column, size in enumerate(self.sizes):
            digits[:, column] = rng.integers(size, size=count)
        return digits

    def keys(self, digits: np.ndarray) -> np.ndarray:
        """One uint64 a tuple; in grids beyond 2**64 a chance collision merely refuses a tuple not drawn yet."""
        keys = np.zeros(len(digits), np.uint64)
        for column, size in enumerate(self.sizes):
            keys = keys * np.uint64(size) + digits[:, column]
        return keys

    def judge(
        self, digits: np.ndarray, exclude: Set[str], seen: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Remaps `digits` in place; verdicts int16 and the last remap of each (1 + index, 0 for none)."""
        verdict, moved = np.zeros(len(digits), np.int16), np.zeros(len(digits), np.int16)
        for number, rule in enumerate(self.rules, start=1):
            if rule is None:
                continue
            hit = rule.matches(digits) & (verdict == ACCEPTED)
            if rule.redraw is None:
                verdict[hit] = number
                continue
            for column, allowed in rule.redraw:
                wrong = np.flatnonzero(hit & ~np.isin(digits[:, column], allowed))
                digits[wrong, column] = rng.choice(allowed, len(wrong))
                moved[wrong] = number
        keys = self.keys(digits)
        first = np.zeros(len(digits), bool)
        good = np.flatnonzero(verdict == ACCEPTED)
        first[good[np.unique(keys[good], return_index=True)[1]]] = True
        verdict[(verdict == ACCEPTED) & (~first | np.isin(keys, seen))] = REPEAT
        if exclude:
            good = np.flatnonzero(verdict == ACCEPTED)
            held = [normal(text) in exclude for text in self.texts(digits[good])]
            verdict[good[np.array(held, bool)]] = HELD_OUT
        return verdict, moved


@dataclass(frozen=True)
class _Rule:
    """A rule in one cell."""

    when: list[tuple[int, np.ndarray]]
    """(column, whether each value of its vocabulary fits)."""
    unless: list[tuple[int, np.ndarray]] | None
    equal: list[tuple[int, np.ndarray]]
    """(column, code of each value; equal names have equal codes)."""
    redraw: list[tuple[int, np.ndarray]] | None
    """(column, value indices to choose from); None where the tuple is refused."""

    @classmethod
    def compile(cls, space: PromptSpace, cell: Cell, rule: Exclusion) -> _Rule | None:
        """None where the rule matches nothing in the cell."""

        def masks(condition: Mapping[str, tuple[str, ...]]) -> list[tuple[int, np.ndarray]] | None:
            found = []
            for key, wanted in condition.items():
                if key in cell.categories:
                    if cell.categories[key] not in wanted:
                        return None
                elif key not in cell.factors:
                    return None
                else:
                    column, names = cell.factors.index(key), space.factors[key].expand(wanted)
                    found.append((column, np.array([w.name in names for w in cell.vocabularies[column]])))
            return found

        when = masks(rule.when)
        unless = masks(rule.unless) if rule.unless else None
        if when is None or unless == [] or not set(rule.equal) <= set(cell.factors):
            return None
        codes: dict[str, int] = {}
        equal = []
        for name in rule.equal:
            column = cell.factors.index(name)
            words = cell.vocabularies[column]
            equal.append((column, np.array([codes.setdefault(w.name, len(codes)) for w in words])))
        redraw = None
        if isinstance(rule, Remap):
            to = masks(rule.to)
            if to is not None and all(mask.any() for _, mask in to):
                redraw = [(column, np.flatnonzero(mask).astype(np.uint16)) for column, mask in to]
        return cls(when, unless, equal, redraw)

    def matches(self, digits: np.ndarray) -> np.ndarray:
        hit = _all(self.when, digits)
        if self.unless is not None:
            hit &= ~_all(self.unless, digits)
        for column, codes in self.equal[1:]:
            first, first_codes = self.equal[0]
            hit &= codes[digits[:, column]] == first_codes[digits[:, first]]
        return hit


def draw_prompts(
    space: PromptSpace,
    count: int,
    seed: int,
    target: Target | None = None,
    exclude: Set[str] = frozenset(),
) -> Draw:
    """Draws `count` prompts whose share of every category value is its target to within one prompt.

    `target` replaces the shares of the categories that it names; texts in `exclude` are never drawn. Prompts are
    distinct as far as their cells allow under these shares. Equal arguments give equal prompts. Raises UserError where
    the count or the seed is unusable, or the rules and the excluded texts leave no way to meet the target.
    """
    if count < 1 or seed < 0:
        raise UserError(f"count {count} and seed {seed}: at least 1 prompt and a seed of 0 or more are needed")
    shares = space.target(target or {})
    held_out = frozenset(map(normal, exclude))
    cells = [_Cell(space, cell) for cell in space.cells()]
    rngs = [np.random.default_rng([seed, 1, index]) for index in range(len(cells))]
    small: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    capacity = np.zeros(len(cells))
    blocked: dict[int, Counter[int]] = {}
    for index, cell in enumerate(cells):
        if any(shares[category][value] == 0 for category, value in cell.cell.categories.items()):
            continue
        whole = cell.size <= SMALL
        digits = cell.grid(rngs[index]) if whole else cell.random(SMALL // 4, rngs[index])
        verdict, moved = cell.judge(digits, held_out, np.empty(0, np.uint64), rngs[index])
        if whole:
            small[index] = digits, verdict, moved
        capacity[index] = np.mean(verdict == ACCEPTED) * cell.size
        if capacity[index] == 0:
            blocked[index] = Counter(verdict.tolist())
    quotas = _quotas(space, cells, shares, count, capacity, blocked, seed)

    tally, rows, repeated = _Tally(), [], 0
    for index, (cell, quota) in enumerate(zip(cells, quotas.tolist(), strict=True)):
        drawn = _draw_cell(cell, quota, held_out, small.pop(index, None), rngs[index], tally)
        repeated += quota - len(drawn)
        rows.append(drawn if len(drawn) == quota else np.resize(drawn, (quota, len(cell.sizes))))
    order = np.repeat(np.arange(len(cells), dtype=np.int16), quotas)
    np.random.default_rng([seed, 2]).shuffle(order)
    names = {number: rule.name for number, rule in enumerate(space.rules, start=1)}
    dropped = {name: tally.refused[number] for number, name in names.items()} | {"held_out": tally.refused[HELD_OUT]}
    remapped = {rule.name: tally.moved[number] for number, rule in enumerate(space.remap, start=1)}
    return Draw(shares, dropped, remapped, repeated, cells, rows, order)


def sample_prompts(
    space: PromptSpace,
    count: int,
    seed: int,
    target: Target | None = None,
    exclude: Set[str] = frozenset(),
    prefix: str = "p",
) -> list[Prompt]:
    """`draw_prompts`, as rows with ids `<prefix>-0001` and so on."""
    return list(draw_prompts(space, count, seed, target, exclude).prompts(prefix))


def write_pool(
    space: PromptSpace,
    count: int,
    seed: int,
    path: str | Path,
    target: Target | None = None,
    exclude: Set[str] = frozenset(),
    prefix: str = "p",
) -> int:
    """Writes `sample_prompts` as JSON lines without ever holding them, whole or not at all; returns how many."""
    draw = draw_prompts(space, count, seed, target, exclude)
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for block in draw.lines(prefix):
            file.write(block)
    return len(draw)


class _Tally:
    def __init__(self) -> None:
        self.refused: Counter[int] = Counter()
        self.moved: Counter[int] = Counter()

    def add(self, verdict: np.ndarray, moved: np.ndarray) -> None:
        self.refused.update(dict(zip(*map(np.ndarray.tolist, np.unique(verdict, return_counts=True)), strict=True)))
        self.moved.update(dict(zip(*map(np.ndarray.tolist, np.unique(moved, return_counts=True)), strict=True)))


def _draw_cell(
    cell: _Cell,
    quota: int,
    exclude: Set[str],
    judged: tuple[np.ndarray, np.ndarray, np.ndarray] | None,
    rng: np.random.Generator,
    tally: _Tally,
) -> np.ndarray:
    """Up to `quota` distinct allowed tuples, fewer only where the cell holds (practically) no more."""
    if quota == 0:
        return np.empty((0, len(cell.sizes)), np.uint16)
    if judged is None and cell.size <= min(16 * quota, 1 << 22):
        digits = cell.grid(rng)
        judged = (digits, *cell.judge(digits, exclude, np.empty(0, np.uint64), rng))
    found: list[np.ndarray] = []
    seen, have, dry = np.empty(0, np.uint64), 0, 0
    while have < quota and dry < 8:
        if judged is not None:
            (digits, verdict, moved), dry = judged, 8
        else:
            digits = cell.random(max(1024, (quota - have) * 2), rng)
            verdict, moved = cell.judge(digits, exclude, seen, rng)
        good = np.flatnonzero(verdict == ACCEPTED)[: quota - have]
        if len(good) < len(digits) / 1000:
            dry += 1
        # Only what was looked at before the quota was full is counted.
        last = good[-1] + 1 if have + len(good) == quota else len(digits)
        tally.add(verdict[:last], moved[:last])
        found.append(digits[good])
        have += len(good)
        seen = np.concatenate([seen, cell.keys(digits[good])])
    return np.concatenate(found)


def _quotas(
    space: PromptSpace,
    cells: list[_Cell],
    shares: Mapping[str, Mapping[str, float]],
    count: int,
    capacity: np.ndarray,
    blocked: Mapping[int, Counter[int]],
    seed: int,
) -> np.ndarray:
    index = {category: {value: i for i, value in enumerate(s)} for category, s in shares.items()}
    values = np.array([[index[k][c.cell.categories[k]] for c in cells] for k in shares], int).reshape(len(shares), -1)
    targets = [np.array(list(s.values())) for s in shares.values()]
    try:
        return joint_quotas(values, targets, count, capacity, np.random.default_rng([seed, 0]))
    except Infeasible as error:
        found = [(list(shares)[k], list(shares[list(shares)[k]])[v], want, fit) for k, v, want, fit in error.short]
        short = "; ".join(f"{k} {v!r} wants {want} of {count} prompts and {fit} fit" for k, v, want, fit in found)
        short = short or f"no whole numbers add up at {count} prompts"
        reasons = _in_the_way(space, cells, shares, blocked, {(k, v) for k, v, _, _ in found})
        raise UserError(
            f"space {space.name!r}: the target shares cannot be met together: {short}"
            f"{'; in the way: ' + ', '.join(reasons) if reasons else ''}; change the target or the space"
        ) from None


def _in_the_way(
    space: PromptSpace,
    cells: list[_Cell],
    shares: Mapping[str, Mapping[str, float]],
    blocked: Mapping[int, Counter[int]],
    short: Set[tuple[str, str]],
) -> list[str]:
    """What empties the cells of the values that fall short."""
    import itertools

    reasons: dict[str, None] = {}
    for combination in itertools.product(*shares.values()):
        categories = dict(zip(shares, combination, strict=True))
        wanted = all(shares[k][v] > 0 for k, v in categories.items())
        if wanted and short & categories.items() and (name := space.emptied_by(categories)):
            reasons[f"rule {name!r}"] = None
    for number, verdicts in blocked.items():
        if short & cells[number].cell.categories.items():
            for code in sorted(set(verdicts) - {REPEAT}):
                reasons["held-out prompts" if code == HELD_OUT else f"rule {space.rules[code - 1].name!r}"] = None
    return list(reasons)


def _all(conditions: list[tuple[int, np.ndarray]], digits: np.ndarray) -> np.ndarray:
    hit = np.ones(len(digits), bool)
    for column, mask in conditions:
        hit &= mask[digits[:, column]]
    return hit


def _filled(pattern: str, columns: list[np.ndarray], count: int) -> list[str]:
    if not columns:
        return [pattern % ()] * count
    return [pattern % row for row in zip(*(column.tolist() for column in columns), strict=True)]


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
