# SPDX-License-Identifier: GPL-2.0-or-later
"""The downtime benchmark as a picture: one SVG file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

_WIDTH, _HEIGHT = 860, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 84, 70
_BOX = 34  # width of a box
_COLOURS = {"main": "#3b6fb6", "multifd": "#d9822b"}
_LINES = 5  # of the scale, about
_MARKS = {"lowest": ("diamond", "published: talk, lowest"), "q25": ("triangle", "published: series, 25 %")}


def downtime_svg(rows: Sequence[Any], cells: Sequence[Any], setup: str) -> str:
    """A box for each of `rows` (lowest, quartiles, median, a dot for each run), published figures as marks.

    rows and cells: as `verifier.bench.downtime` has them. setup: one line below the title.
    """
    published = {
        (cell.vfs, cell.transfer, cell.channels, cell.statistic): cell.published_ms
        for cell in cells
        if cell.published_ms is not None
    }
    highest = max([*published.values(), *(ms for row in rows for ms in row.downtimes_ms)], default=1.0)
    step = _step(highest)
    scale = _Scale(step * (int(highest / step) + 1), len(rows))
    parts = [*_frame(scale, step, setup)]
    for index, row in enumerate(rows):
        own = [cell for cell in cells if _key(cell) == _key(row)]
        parts += _box(scale.x(index), scale, row, own[0])
        for place, statistic in enumerate(_MARKS):
            ms = published.get((*_key(row), statistic))
            if ms is not None:
                x = scale.x(index) - _BOX + 6 - 15 * place
                parts.append(_mark(statistic, x, scale.y(ms), f"published: {ms:.0f} ms"))
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-family="sans-serif" font-size="12">'
    )
    return "\n".join([head, *parts, "</svg>"]) + "\n"


class _Scale:
    """Where things lie: milliseconds up, rows from left to right."""

    def __init__(self, highest_ms: float, rows: int) -> None:
        self.highest_ms = highest_ms
        self._each = (_WIDTH - _LEFT - _RIGHT) / max(1, rows)

    def x(self, index: int) -> float:
        return _LEFT + self._each * (index + 0.5)

    def y(self, ms: float) -> float:
        return _HEIGHT - _BOTTOM - ms / self.highest_ms * (_HEIGHT - _TOP - _BOTTOM)


def _key(row: Any) -> tuple[int, str, int]:
    return row.vfs, row.transfer, row.channels


def _step(highest: float) -> float:
    """1, 2 or 5 times a power of ten, so that there are a few lines."""
    step = 1.0
    while True:
        for factor in (1, 2, 5):
            if highest <= step * factor * _LINES:
                return step * factor
        step *= 10


def _frame(scale: _Scale, step: float, setup: str) -> Iterator[str]:
    yield f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>'
    yield _text(_LEFT, 24, "Downtime as QEMU reports it, mock VFs beside published figures", size=16)
    yield _text(_LEFT, 42, setup, colour="#555")
    x = _LEFT
    for statistic, (_, words) in _MARKS.items():
        yield _mark(statistic, x + 6, 58, words)
        yield _text(x + 18, 62, words)
        x += 190
    yield _text(x, 62, "box: quartiles and median of ours; dots: single runs")
    for number in range(int(scale.highest_ms / step) + 1):
        y = scale.y(number * step)
        yield f'<path d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>'
        yield _text(_LEFT - 8, y + 4, f"{number * step:.0f}", anchor="end")
    yield _text(_LEFT - 8, _TOP - 14, "ms", anchor="end")


def _box(x: float, scale: _Scale, row: Any, cell: Any) -> Iterator[str]:
    colour = _COLOURS[row.transfer]
    base = _HEIGHT - _BOTTOM
    yield _text(x, base + 20, f"{row.vfs} VF{'s' if row.vfs > 1 else ''}", anchor="middle")
    yield _text(x, base + 36, row.transfer, anchor="middle", colour=colour)
    counts = f"{cell.runs} run{'s' if cell.runs != 1 else ''}"
    failed = f", {cell.failed} failed" if cell.failed else ""
    yield _text(x, base + 52, counts + failed, anchor="middle", colour="#b00" if failed else "#555")
    if cell.lowest_ms is None:
        return
    top, bottom = scale.y(cell.q75_ms), scale.y(cell.q25_ms)
    left, right = x - _BOX / 2, x + _BOX / 2
    yield (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{_BOX}" height="{max(bottom - top, 0.5):.1f}" '
        f'fill="{colour}" fill-opacity="0.25" stroke="{colour}"/>'
    )
    for ms, width in ((cell.median_ms, 2.5), (cell.lowest_ms, 1)):
        line = f"M{left:.1f} {scale.y(ms):.1f}H{right:.1f}"
        yield f'<path d="{line}" stroke="{colour}" stroke-width="{width}"/>'
    yield f'<path d="M{x:.1f} {bottom:.1f}V{scale.y(cell.lowest_ms):.1f}" stroke="{colour}"/>'
    for ms in row.downtimes_ms:
        where = f'cx="{right + 7:.1f}" cy="{scale.y(ms):.1f}"'
        yield f'<circle {where} r="2" fill="{colour}" fill-opacity="0.5"/>'


def _mark(statistic: str, x: float, y: float, words: str) -> str:
    shape, _ = _MARKS[statistic]
    path = {"diamond": "l6 6l-6 6l-6 -6z", "triangle": "l6 11h-12z"}[shape]
    fill = {"diamond": "black", "triangle": "white"}[shape]
    where = f"M{x:.1f} {y - 6:.1f}{path}"
    return f'<path d="{where}" fill="{fill}" stroke="black"><title>{escape(words)}</title></path>'


def _text(
    x: float, y: float, words: str, *, anchor: str = "start", colour: str = "black", size: int = 12
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">'
        f"{escape(words)}</text>"
    )
