# SPDX-License-Identifier: GPL-2.0-or-later
"""What the sections of a page are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from verifier.invariants import INVARIANTS
from verifier.report.markup import Markup, tag
from verifier.verdict import Standing

NS_PER_MS = 1e6
SIGNS = {Standing.HOLDS: "✓", Standing.VIOLATED: "✕", Standing.UNKNOWN: "?"}
PASSPORTS = {invariant.passport.id: invariant.passport for invariant in INVARIANTS}


def folded(ident: str, name: str, words: str, *content: object) -> Markup:
    """A section that opens when it is asked to."""
    summary = tag("summary", tag("h2", name), tag("span", words, class_="note"))
    return tag("section", tag("details", summary, content), id=ident, tabindex=-1)


def more_of(count: int, what: str) -> Markup | None:
    """That so many more are left out; nothing where none is."""
    return tag("p", f"Left out: {count:,} more {what}.", class_="note") if count > 0 else None


def table(
    heads: Sequence[str], rows: Iterable[Sequence[object]], name: str, numeric: Iterable[int] = ()
) -> Markup:
    """A table that scrolls by itself where it is too wide. numeric: columns that stand to the right."""
    right = set(numeric)
    classes = ["n" if column in right else None for column in range(len(heads))]
    head = tag("tr", [tag("th", word, scope="col", class_=classes[i]) for i, word in enumerate(heads)])
    body = [tag("tr", [tag("td", cell, class_=classes[i]) for i, cell in enumerate(row)]) for row in rows]
    content = tag("table", tag("thead", head), tag("tbody", body))
    return tag("div", content, class_="scroll", tabindex=0, role="region", aria_label=name)


def at(time_ns: int | None, first_ns: int) -> str:
    """A time, from a picture's first."""
    return "unknown" if time_ns is None else f"{(time_ns - first_ns) / NS_PER_MS:,.3f} ms"
