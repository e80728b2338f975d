"""Charts as inline SVG: colours and type come from the page's style sheet, so that they follow light and dark mode."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Mark:
    """One estimate: its value, its interval and how it is drawn (`champion`, `promoted` or `rejected`)."""

    slot: int
    mean: float
    low: float
    high: float
    kind: str
    label: str


@dataclass(frozen=True)
class Line:
    name: str
    points: Points
    style: str
    """CSS classes, e.g. `r1 dashed`."""


class Frame:
    """A plot area with a value axis: maps values to pixels and collects SVG elements."""

    def __init__(self, width: int, height: int, low: float, high: float, unit: str = "", left: int = 46):
        self.width, self.height, self.left, self.right, self.top, self.bottom = width, height, left, 12, 12, 26
        self.ticks = ticks(low, high)
        self.low, self.high = min(low, self.ticks[0]), max(high, self.ticks[-1])
        self.parts: list[str] = []
        for tick in self.ticks:
            y = self.y(tick)
            self.add(f'<line class="grid" x1="{left}" x2="{width - self.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            self.text(left - 8, y + 4, number(tick) + unit, "end")

    def y(self, value: float) -> float:
        span = (self.high - self.low) or 1.0
        return self.top + (self.high - value) / span * (self.height - self.top - self.bottom)

    def x(self, share: float) -> float:
        return self.left + share * (self.width - self.left - self.right)

    def add(self, element: str) -> None:
        self.parts.append(element)

    def text(self, x: float, y: float, text: str, anchor: str = "middle", style: str = "tick") -> None:
        self.add(_text(x, y, text, anchor, style))

    def svg(self, label: str, style: str = "") -> Markup:
        return _svg(self.width, self.height, self.parts, label, style)


def interval_chart(
    slots: list[str],
    marks: list[Mark],
    label: str,
    unit: str = "",
    threshold: tuple[float, str] | None = None,
    bounds: tuple[float, float] = (0.0, 100.0),
    wide: bool = True,
) -> Markup:
    """Means with their intervals over named slots; champions are joined by a line."""
    values = [value for mark in marks for value in (mark.low, mark.mean, mark.high)]
    if threshold:
        values.append(threshold[0])
    low, high = (min(values), max(values)) if values else bounds
    pad = max(0.12 * (high - low), 1.0)
    width, height = (620, 300) if wide else (340, 210)
    frame = Frame(width, height, max(bounds[0], low - pad), min(bounds[1], high + pad), unit)
    place = lambda slot: frame.x((slot + 0.5) / len(slots))  # noqa: E731
    for index, name in enumerate(slots):
        frame.text(place(index), height - 7, name)
    if threshold:
        y = frame.y(threshold[0])
        frame.add(f'<line class="threshold" x1="{frame.left}" x2="{width - frame.right}" y1="{y:.1f}" y2="{y:.1f}"/>')
    champions = [mark for mark in marks if mark.kind == "champion"]
    path = " ".join(f"{place(mark.slot):.1f},{frame.y(mark.mean):.1f}" for mark in champions)
    frame.add(f'<polyline class="champion-line" points="{path}"/>')
    for mark in marks:
        _draw_mark(frame, mark, place(mark.slot), wide)
    if threshold:
        # Between the first two slots, where no whisker stands.
        frame.text(frame.x(1 / len(slots)), frame.y(threshold[0]) + 16, threshold[1], "middle", "threshold-text")
    return frame.svg(label, "wide" if wide else "")


def _draw_mark(frame: Frame, mark: Mark, x: float, wide: bool) -> None:
    if mark.kind == "rejected":
        x += min(26.0, 0.5 * (frame.width - frame.left) / 8)
    y, low, high = frame.y(mark.mean), frame.y(mark.low), frame.y(mark.high)
    frame.add(f'<g class="{mark.kind}"><title>{escape(mark.label)}</title>')
    if mark.kind != "promoted":
        caps = f"M{x - 5:.1f} {low:.1f}h10M{x - 5:.1f} {high:.1f}h10"
        frame.add(f'<path class="whisker" d="M{x:.1f} {low:.1f}V{high:.1f}{caps}"/>')
    if mark.kind == "rejected":
        frame.add(f'<path class="cross" d="M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10"/>')
    else:
        frame.add(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{9 if mark.kind == "promoted" else 5}"/>')
    frame.add("</g>")
    if mark.kind == "champion":
        where = (x - 12, y - 8) if wide else (x, high - 7)
        frame.text(*where, f"{mark.mean:.1f}", "end" if wide else "middle", "value")


def line_chart(lines: list[Line], label: str) -> Markup:
    """Series over steps: raw values faint, their running mean strong where a series is long enough to need one."""
    values = [value for line in lines for _, value in line.points]
    if not values:
        return Markup("")
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    frame = Frame(340, 190, low - pad, high + pad)
    last = max(step for line in lines for step, _ in line.points)
    first = min(step for line in lines for step, _ in line.points)
    place = lambda step: frame.x((step - first) / ((last - first) or 1))  # noqa: E731
    for step, anchor in ((first, "start"), ((first + last) / 2, "middle"), (last, "end")):
        frame.text(place(step), frame.height - 7, f"{step:.0f}", anchor)
    for line in lines:
        smooth = running_mean(line.points)
        for points, style in ((line.points, "raw"), (smooth, "smooth")) if smooth else ((line.points, "smooth"),):
            path = " ".join(f"{place(step):.1f},{frame.y(value):.1f}" for step, value in points)
            name = f"<title>{escape(line.name)}</title>"
            frame.add(f'<polyline class="line {line.style} {style}" points="{path}">{name}</polyline>')
    return frame.svg(label)


def histogram(kept: list[int], dropped: list[int], label: str, threshold: float | None = None) -> Markup:
    """Counts over equal bins of [0, 1], kept ones standing on dropped ones; a line at the threshold."""
    frame = Frame(340, 190, 0, max(1, *(a + b for a, b in zip(kept, dropped, strict=True))))
    bins = len(kept)
    for value, anchor in ((0, "start"), (0.5, "middle"), (1, "end")):
        frame.text(frame.x(value), frame.height - 7, number(value), anchor)
    for index in range(bins):
        left, right, base = frame.x(index / bins) + 0.6, frame.x((index + 1) / bins) - 0.6, 0
        edges = f"{index / bins:.2f} to {(index + 1) / bins:.2f}"
        for count, style in ((dropped[index], "dropped"), (kept[index], "kept")):
            if count:
                top, bottom = frame.y(base + count), frame.y(base)
                box = f'x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{bottom - top:.1f}"'
                frame.add(f'<rect class="{style}" {box}><title>{edges}: {count} {style}</title></rect>')
                base += count
    if threshold is not None:
        x, bottom = frame.x(threshold), frame.height - frame.bottom
        frame.add(f'<line class="threshold" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top}" y2="{bottom}"/>')
    return frame.svg(label)


@dataclass(frozen=True)
class Series:
    """One model's estimates over named rows: {"mean", "low", "high"} each, or None where there is none."""

    name: str
    estimates: Sequence[Mapping[str, float] | None]
    style: str
    """CSS class, e.g. `r1`."""

    def told(self, row: str, index: int) -> str:
        found = self.estimates[index]
        if found is None:
            return f"{row}, {self.name}: not measured"
        return f"{row}, {self.name}: {found['mean']:.1f}, 95% interval {found['low']:.1f} to {found['high']:.1f}"


def bar_chart(rows: list[str], series: list[Series], label: str, bounds: tuple[float, float] = (0.0, 100.0)) -> Markup:
    """Lying bars, one a series under each row's name, with their intervals as whiskers."""
    width, left, right, top, thick, gap = 620, 172, 44, 8, 11, 13
    low, high = bounds
    height = top + len(rows) * (len(series) * thick + gap) + 24
    x = lambda value: left + (value - low) / (high - low) * (width - left - right)  # noqa: E731
    parts = []
    for tick in ticks(low, high):
        place, end = x(tick), height - 24
        parts.append(f'<line class="grid" x1="{place:.1f}" x2="{place:.1f}" y1="{top}" y2="{end}"/>')
        parts.append(_text(place, height - 8, number(tick)))
    for index, row in enumerate(rows):
        y = top + gap / 2 + index * (len(series) * thick + gap)
        parts.append(_text(left - 10, y + len(series) * thick / 2 + 4, row, "end"))
        for each in series:
            found = each.estimates[index]
            parts.append(f'<g class="bars {each.style}"><title>{escape(each.told(row, index))}</title>')
            if found:
                ends, middle = (x(found["low"]), x(found["high"])), y + thick / 2
                box = f'x="{x(low):.1f}" y="{y + 1:.1f}" width="{x(found["mean"]) - x(low):.1f}" height="{thick - 2}"'
                caps = f"M{ends[0]:.1f} {middle - 3:.1f}v6M{ends[1]:.1f} {middle - 3:.1f}v6"
                parts.append(f'<rect {box} rx="2"/><path d="M{ends[0]:.1f} {middle:.1f}H{ends[1]:.1f}{caps}"/>')
                parts.append(_text(width - right + 8, y + thick - 1.5, f"{found['mean']:.1f}", "start"))
            parts.append("</g>")
            y += thick
    return _svg(width, height, parts, label)


def radar_chart(
    rows: list[str], series: list[Series], label: str, bounds: tuple[float, float] = (0.0, 100.0)
) -> Markup:
    """A web with an axis for each row that every series has a mean for; an empty text for fewer than three of them."""
    axes = [index for index in range(len(rows)) if all(each.estimates[index] for each in series)]
    if len(axes) < 3:
        return Markup("")
    width, height, radius, low, high = 460, 400, 142, *bounds

    def point(place: int, value: float) -> tuple[float, float]:
        angle, reach = 2 * math.pi * place / len(axes), (value - low) / (high - low) * radius
        return width / 2 + reach * math.sin(angle), height / 2 - reach * math.cos(angle)

    def outline(values: list[float]) -> str:
        return " ".join("{:.1f},{:.1f}".format(*point(place, value)) for place, value in enumerate(values))

    rings = [low + (high - low) * share for share in (0.25, 0.5, 0.75, 1)]
    parts = [f'<polygon class="grid web" points="{outline([ring] * len(axes))}"/>' for ring in rings]
    for place, index in enumerate(axes):
        (x, y), (at_x, at_y) = point(place, high), point(place, high + 0.09 * (high - low))
        parts.append(f'<line class="grid" x1="{width / 2}" y1="{height / 2}" x2="{x:.1f}" y2="{y:.1f}"/>')
        side = at_x - width / 2
        anchor = "middle" if abs(side) < 20 else "start" if side > 0 else "end"
        words = rows[index].split(" ", 1)
        for line, word in enumerate(words):
            parts.append(_text(at_x, at_y + 4 + 13 * (line - (len(words) - 1) / 2), word, anchor))
    parts += [_text(width / 2 + 4, point(0, ring)[1] + 11, number(ring), "start", "ring") for ring in rings[:-1]]
    means = [[found["mean"] for index in axes if (found := each.estimates[index])] for each in series]
    for each, own in zip(series, means, strict=True):
        parts.append(f'<polygon class="shape {each.style}" points="{outline(own)}"/>')
    for each, own in zip(series, means, strict=True):
        for place, (index, mean) in enumerate(zip(axes, own, strict=True)):
            x, y = point(place, mean)
            title = f"<title>{escape(each.told(rows[index], index))}</title>"
            parts.append(f'<circle class="corner {each.style}" cx="{x:.1f}" cy="{y:.1f}" r="3.5">{title}</circle>')
    return _svg(width, height, parts, label)


def _text(x: float, y: float, text: str, anchor: str = "middle", style: str = "tick") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(width: int, height: int, parts: list[str], label: str, style: str = "") -> Markup:
    head = f'<svg class="chart {style}" viewBox="0 0 {width} {height}" role="img"'
    return Markup(f'{head} aria-label="{escape(label)}">{"".join(parts)}</svg>')


def running_mean(points: Points) -> Points:
    """Centred mean over a tenth of the series, the window cut at the ends; empty for series of fewer than 20 points."""
    if len(points) < 20:
        return []
    half = max(1, len(points) // 20)
    result = []
    for index, (step, _) in enumerate(points):
        window = [value for _, value in points[max(0, index - half) : index + half + 1]]
        result.append((step, sum(window) / len(window)))
    return result


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten inside [low, high]: 3 or more where that can be, few over `count`."""
    raw = ((high - low) or abs(high) or 1.0) / count
    power = 10.0 ** math.floor(math.log10(raw))
    found: list[float] = []
    for factor in (10, 5, 2, 1):
        step = power * factor
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if found and last - first > count:
            break
        found = [float(f"{index * step:.12g}") for index in range(first, last + 1)]
        if len(found) >= 3:
            break
    return found or [low]


def number(value: float) -> str:
    """Three significant digits, without an exponent where a person would write none."""
    if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
