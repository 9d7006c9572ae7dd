# SPDX-License-Identifier: GPL-2.0-or-later
"""Write docs/catalogue.md and docs/wire.md from the code, or with --check say whether they are current."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mockdev.wire.channel import MAIN, MULTIFD, Table
from mockdev.wire.dialect import DIALECTS
from mockdev.wire.layout import Layout
from mockdev.wire.structs import LAYOUTS
from verifier.invariants import INVARIANTS
from verifier.invariants.passport import limits
from verifier.invariants.unjudged import UNJUDGED

FOLDER = Path(__file__).parent
NOTE = "<!-- Written by `make docs` from the code; edits here are lost. -->\n"


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _struct(layout: Layout[Any]) -> str:
    rows = [
        (str(p.offset), str(p.size), p.name + (f"[{p.spec.count}]" if p.spec.count else ""))
        for p in layout.fields
    ]
    title = layout.c_name or layout.record.__name__
    purpose = " ".join((layout.record.__doc__ or "").split())
    return f"## {title} ({layout.size} bytes)\n\n{purpose}\n\nSource: {layout.source}\n\n" + _table(
        ("offset", "size", "field"), rows
    )


def _transitions(title: str, table: Table) -> str:
    rows = [
        (phase.value, event.value, after.value)
        for phase, events in table.items()
        for event, after in events.items()
    ]
    return f"## {title}\n\n" + _table(("while", "comes", "then"), rows)


def wire() -> str:
    """The page on structs, dialects and transition tables."""
    switches = [name for name in vars(DIALECTS[0]) if name not in ("name", "compression_mask")]
    dialects = [
        (d.name, *("yes" if getattr(d, name) else "" for name in switches), f"{d.compression_mask:#04x}")
        for d in DIALECTS
    ]
    return "\n".join(
        (
            NOTE,
            "# The wire, as described in mockdev/wire\n",
            "Big-endian, no padding. Offsets and sizes in bytes.\n",
            *(_struct(layout) for layout in LAYOUTS),
            "## Dialects\n",
            _table(("release", *(s.replace("_", " ") for s in switches), "compression bits"), dialects),
            _transitions("A multifd connection", MULTIFD),
            _transitions("The main channel", MAIN),
        )
    )


def catalogue() -> str:
    """The page on invariants."""
    said = [i.passport for i in INVARIANTS]
    rows = [(p.id, p.statement, p.severity.value, p.scope.name, str(p.source)) for p in said]
    bounds = [(i.passport.id, *limits(i)) for i in INVARIANTS]
    return (
        NOTE
        + f"\n# The {len(INVARIANTS)} invariants\n\n"
        + "What `vfmig check` holds a migration to. `vfmig catalogue` prints the same, and of single ones "
        + "(`vfmig catalogue DS-10`) the second table, too.\n\n"
        + _table(("id", "statement", "a break", "scope", "source"), rows)
        + "\n## How far each is to be believed\n\n"
        + "Sound: why a violation accuses nobody falsely, and on what that rests. Misses: what breaks the "
        + "statement unseen, and where it would show.\n\n"
        + _table(("id", "sound", "misses"), bounds)
        + "\n## Rules that are not judged, and why\n\n"
        + _table(("rule", "says", "why not"), UNJUDGED)
    )


def main() -> int:
    """Write the pages, or compare; the exit code."""
    stale = []
    for name, text in (("wire.md", wire()), ("catalogue.md", catalogue())):
        path = FOLDER / name
        if "--check" in sys.argv[1:]:
            if not path.exists() or path.read_text() != text:
                stale.append(name)
        else:
            path.write_text(text)
    for name in stale:
        print(f"docs/{name} is not what the code says; run: make docs", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
