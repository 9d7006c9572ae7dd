# SPDX-License-Identifier: GPL-2.0-or-later
"""No verdict that is given before the end rests on which of two files was ahead of the other."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.canaries.births import CANARIES
from tests.canaries.lent import lend
from tests.canaries.script import Script, good
from verifier.capture.pcapng import open_capture
from verifier.check import CAPTURE_NAMES, check_path
from verifier.history.facts import Facts
from verifier.history.growing import GrowingFile, GrowingLines
from verifier.history.history import History
from verifier.history.observation import Said
from verifier.invariants import INVARIANTS
from verifier.invariants.judge import Judge
from verifier.online import files_of


class Shuffled(GrowingLines):
    """Lines that come at any moment, and of any file; each file keeps its own order."""

    def __init__(self, files: list[GrowingFile], seed: int) -> None:
        super().__init__(files)
        self._random = random.Random(seed)
        self._share = self._random.choice((0.0, 0.05, 0.5, 0.95))  # that comes at one moment
        self.poll()
        self.next_ns = 0

    def until(self, time_ns: int) -> Iterator[Said]:  # noqa: ARG002
        while self._random.random() < self._share and (said := self._any()):
            yield said

    def rest(self) -> Iterator[Said]:
        while said := self._any():
            yield said

    def _any(self) -> Said | None:
        files = [file for file in self.files if file.waiting]
        return self._random.choice(files).waiting.popleft() if files else None


def online_ids(folder: Path, seed: int) -> set[str]:
    """Ids of what is found before the end, with the files read in an order of chance."""
    files = files_of(folder)
    judges: list[Judge] = []

    def make(facts: Facts) -> Judge:
        judges.append(Judge(facts, "capture", INVARIANTS))
        return judges[-1]

    lines = Shuffled(files, seed)
    with closing(lines), closing(History(make, lines, one_target=True, digests=False)) as history:
        if (folder / CAPTURE_NAMES[0]).exists():
            with open_capture(folder / CAPTURE_NAMES[0]) as capture:
                history.read_capture(capture)
        history.finish()
    assert not any(file.waiting for file in files)
    return {violation.id for judge in judges for violation in judge.violations}


@pytest.mark.parametrize("edit", [lambda _: None, lend], ids=["mocks", "qemus"])
def test_the_innocent_are_not_accused_in_whatever_order_files_are_read(
    edit: Callable[[Script], None], tmp_path: Path
) -> None:
    script = good()
    edit(script)
    script.write_folder(tmp_path)
    for seed in range(30):
        assert online_ids(tmp_path, seed) == set(), seed


@pytest.mark.parametrize("name", CANARIES)
def test_nothing_is_found_online_that_the_whole_does_not_show(name: str, tmp_path: Path) -> None:
    script = good()
    CANARIES[name](script)
    script.write_folder(tmp_path)
    whole = {violation.id for violation in check_path(tmp_path).violations}
    for seed in range(4):
        assert online_ids(tmp_path, seed) <= whole, seed
