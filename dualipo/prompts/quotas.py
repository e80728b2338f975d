"""How many prompts each cell gets: whole numbers whose margins are the target shares."""

from __future__ import annotations

import numpy as np


class Infeasible(Exception):
    """No table has these margins. `short` holds (category index, value index, wanted, possible), most missing first."""

    def __init__(self, short: list[tuple[int, int, int, int]]):
        super().__init__("the target shares cannot be met together")
        self.short = short


def largest_remainder(shares: np.ndarray, count: int) -> np.ndarray:
    """Whole numbers that sum to `count`, each within one of `shares * count` (Hamilton's method)."""
    exact = np.asarray(shares, float) * count
    quota = np.floor(exact + 1e-9).astype(np.int64)
    order = np.argsort(-(exact - quota), kind="stable")
    quota[order[: count - int(quota.sum())]] += 1
    return quota


def joint_quotas(
    values: np.ndarray, shares: list[np.ndarray], count: int, capacity: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Prompts of each cell, int64 (cells,), summing to `count`.

    `values` (categories, cells) holds each cell's value of each category, `shares[k]` the targets of category k's
    values, `capacity` (cells,) how many distinct prompts a cell holds, 0 where rules empty it. Every margin is its
    target by largest remainder, or else within one of it. Under these margins the table has maximum entropy (the
    product of the shares, where no cell is empty), no cell exceeds its capacity if that can be, else none exceeds the
    smallest possible multiple of it; fractions are rounded at random. Raises Infeasible.
    """
    margins = [np.eye(len(s))[:, v] for s, v in zip(shares, values, strict=True)]
    member, wanted = np.vstack(margins), np.concatenate(shares)
    open_ = (capacity > 0) & np.all([s[v] > 0 for s, v in zip(shares, values, strict=True)], axis=0)
    limit = np.where(open_, np.minimum(capacity, count), 0.0)
    repeats = _fewest_repeats(member, wanted, limit / count)
    if repeats is None:
        raise Infeasible(_shortfalls(member, wanted, open_, shares, count))
    exact = np.concatenate([largest_remainder(s, count) for s in shares])
    low, high = np.floor(wanted * count + 1e-9), np.ceil(wanted * count - 1e-9)
    for factor in (repeats, repeats + 1, count):
        room = np.minimum(factor * limit, count)
        expected = count * _maximum_entropy(margins, shares, room / count)
        for bounds in ((exact, exact), (low, high)):
            table = _round(member, expected, room, bounds, count, rng)
            if table is not None:
                return table
    raise Infeasible(_shortfalls(member, wanted, open_, shares, count))


def _fewest_repeats(member: np.ndarray, wanted: np.ndarray, limit: np.ndarray) -> int | None:
    """Smallest k such that a table within `k * limit` has the margins; None where there is no table at all."""
    from scipy.optimize import linprog

    cells = len(limit)
    found = linprog(
        np.r_[np.zeros(cells), 1.0],
        A_ub=np.hstack([np.eye(cells), -limit[:, None]]),
        b_ub=np.zeros(cells),
        A_eq=np.hstack([member, np.zeros((len(member), 1))]),
        b_eq=wanted,
    )
    return max(1, int(np.ceil(found.x[-1] - 1e-6))) if found.status == 0 else None


def _maximum_entropy(margins: list[np.ndarray], shares: list[np.ndarray], room: np.ndarray) -> np.ndarray:
    """Table of shares with the given margins, each cell at most `room`: iterative proportional fitting, with Dykstra's
    correction for the bounds."""
    table, correction = (room > 0).astype(float), np.ones(len(room))
    for _ in range(1000):
        before = table
        for member, share in zip(margins, shares, strict=True):
            total = member @ table
            table = table * (np.divide(share, total, out=np.zeros_like(total), where=total > 0) @ member)
        free = table * correction
        table = np.minimum(free, room)
        correction = np.divide(free, table, out=np.ones_like(free), where=table > 0)
        if np.abs(table - before).max() < 1e-12:
            break
    return table


def _round(
    member: np.ndarray,
    expected: np.ndarray,
    room: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray],
    count: int,
    rng: np.random.Generator,
) -> np.ndarray | None:
    """Whole numbers near `expected` whose margins lie within `bounds`; None where there are none."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    base = np.minimum(np.floor(expected + 1e-9), room)
    part = np.clip(expected - base, 0.0, 1.0)
    # Each cell: its floor, the odd prompt (cheap where its fraction is large), further ones, or fewer than the floor.
    odd_cost = np.minimum(rng.exponential(size=len(part)) / np.maximum(part, 1e-3), 100.0)
    far = np.full(len(part), 1000.0)
    odd = np.minimum(1.0, room - base)
    table = np.hstack([member, member, -member])
    rows = np.vstack([table, np.hstack([np.ones(2 * len(part)), -np.ones(len(part))])])
    done = np.r_[member @ base, base.sum()]
    found = milp(
        np.r_[odd_cost, far, far],
        constraints=LinearConstraint(rows, np.r_[bounds[0], count] - done, np.r_[bounds[1], count] - done),
        bounds=Bounds(np.zeros(3 * len(part)), np.r_[odd, room - base - odd, base]),
        integrality=np.ones(3 * len(part)),
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        return None
    more, further, fewer = np.rint(found.x).reshape(3, -1)
    return (base + more + further - fewer).astype(np.int64)


def _shortfalls(
    member: np.ndarray, wanted: np.ndarray, open_: np.ndarray, shares: list[np.ndarray], count: int
) -> list[tuple[int, int, int, int]]:
    """Which values miss how much in the table that misses least."""
    from scipy.optimize import linprog

    lines, cells = member.shape
    found = linprog(
        np.r_[np.zeros(cells), np.ones(2 * lines)],
        A_eq=np.hstack([member, np.eye(lines), -np.eye(lines)]),
        b_eq=wanted * count,
        bounds=[(0, None if free else 0) for free in open_] + [(0, None)] * (2 * lines),
    )
    missing = found.x[cells : cells + lines]
    places = [(k, v) for k, share in enumerate(shares) for v in range(len(share))]
    short = [
        (*place, round(want * count), int(want * count - gap + 1e-6))
        for place, want, gap in zip(places, wanted, missing, strict=True)
        if gap > 1e-6
    ]
    return sorted(short, key=lambda entry: entry[3] - entry[2])
