# SPDX-License-Identifier: GPL-2.0-or-later
"""`report.html` and `trace.json` of one input: collected while it is judged, written afterwards.

pages = Pages()
report = check_path(path, watch=pages.watch)
pages.write(folder, report, str(path))
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from mockdev.errors import VfmigError
from verifier.history.facts import Facts
from verifier.history.observation import Observation
from verifier.report.downtime import parts_of
from verifier.report.explain import shown_of, sights_of
from verifier.report.html import Chapter, page_of
from verifier.report.lanes import ITEMS_MAX
from verifier.report.picture import picture_of
from verifier.report.timeline import TIMELINES_MAX, Timelines
from verifier.report.trace import trace_of
from verifier.verdict import Report

PAGE, TRACE = "report.html", "trace.json"


class PageError(VfmigError):
    """A page cannot be written."""

    environment = True


class Pages:
    """Of one input. watch: for `check_path`."""

    def __init__(self) -> None:
        self._timelines = Timelines()

    def watch(self, facts: Facts) -> Callable[[Observation], None] | None:
        """Collect a migration that was found."""
        return self._timelines.watch(facts)

    @property
    def empty(self) -> bool:
        """Whether no migration was found."""
        return not self._timelines.all

    def write(self, folder: Path, report: Report, title: str, *, one_target: bool) -> list[Path]:
        """Write both, each whole or not at all; their paths. one_target: the input was an evidence folder.

        PageError: one cannot be written.
        """
        timelines = self._timelines.all
        each = ITEMS_MAX // max(1, len(timelines))
        chapters = [Chapter(picture_of(timeline, each), parts_of(timeline)) for timeline in timelines]
        sights = sights_of(shown_of(report.violations), one_target=one_target)
        more = self._timelines.left_out
        left_out = [f"{more} migrations after the first {TIMELINES_MAX}"] if more else []
        page = page_of(report, title, chapters, sights, left_out)
        trace = trace_of([(chapter.picture, chapter.parts) for chapter in chapters])
        contents = {PAGE: page.encode(), TRACE: msgspec.json.encode(trace) + b"\n"}
        return [_write(folder / name, data) for name, data in contents.items()]


def _write(path: Path, data: bytes) -> Path:
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_bytes(data)
        new.replace(path)
    except OSError as error:
        raise PageError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        new.unlink(missing_ok=True)
    return path
