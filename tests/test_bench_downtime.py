# SPDX-License-Identifier: GPL-2.0-or-later
"""`vfmig bench downtime`: statistics, table and plot of made-up figures, and one small real run."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from mockdev.errors import VfmigError
from mockdev.lab.endpoint import EXIT_BEGIN
from mockdev.lab.migration import Pair
from mockdev.lab.outcome import EndpointStatus, Outcome
from mockdev.runtime.config import MigrationConfig
from verifier.bench import downtime
from verifier.bench.downtime import Cell, Measured, Spread, cells, measure, spread
from verifier.bench.published import PUBLISHED, SERIES, TALK, published
from verifier.cli.group import execute
from verifier.report.downtime_plot import downtime_svg
from verifier.report.tables import print_downtime

SMALL = ["--vfs", "1", "--runs", "1", "--state-size", "1MiB"]
SVG = "{http://www.w3.org/2000/svg}"


def test_what_was_published() -> None:
    def table(source: str, transfer: str) -> list[int]:
        rows = [
            c for c in PUBLISHED if (c.source, c.transfer) == (source, transfer) and c.channels in (None, 6)
        ]
        assert [row.vfs for row in rows] == [1, 2, 4]
        return [row.downtime_ms for row in rows]

    assert table(TALK, "main") == [283, 614, 1783]
    assert table(TALK, "multifd") == [274, 434, 1068]
    assert table(SERIES, "main") == [487, 859, 1900]
    assert table(SERIES, "multifd") == [366, 556, 1095]
    assert {cell.statistic for cell in PUBLISHED if cell.source == TALK} == {"lowest"}
    assert {cell.statistic for cell in PUBLISHED if cell.source == SERIES} == {"q25"}


def test_published_figures_go_by_the_number_of_channels() -> None:
    assert [cell.downtime_ms for cell in published(4, "multifd", 6)] == [1068, 1095]
    assert [cell.downtime_ms for cell in published(4, "multifd", 15)] == [1068, 1125]
    assert [cell.downtime_ms for cell in published(1, "multifd", 7)] == [274]
    assert published(3, "main", 6) == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], None),
        ([7], Spread(7, 7, 7, 7)),
        ([30, 10], Spread(10, 15, 20, 25)),
        ([5, 1, 4, 2, 3], Spread(1, 2, 3, 4)),
    ],
)
def test_spread(values: list[float], expected: Spread | None) -> None:
    assert spread(values) == expected


ROWS = [
    Measured(vfs=4, transfer="multifd", channels=6, downtimes_ms=[1200, 1068, 1100, 1300, 1150]),
    Measured(
        vfs=4, transfer="main", channels=6, downtimes_ms=[1783 / 2], failures=["run 1: lost; [x] \x1b[31m"]
    ),
    Measured(vfs=3, transfer="main", channels=6, downtimes_ms=[10, 20]),
    Measured(vfs=1, transfer="main", channels=6, failures=["run 1: hung"]),
]


def test_each_cell_compares_the_statistic_that_was_published() -> None:
    made = cells(ROWS, "A to B")
    assert [(c.vfs, c.transfer, c.statistic, c.published_ms, c.ours_ms) for c in made] == [
        (4, "multifd", "lowest", 1068, 1068),
        (4, "multifd", "q25", 1095, 1100),
        (4, "main", "lowest", 1783, 891.5),
        (4, "main", "q25", 1900, 891.5),
        (3, "main", "median", None, 15),
        (1, "main", "lowest", 283, None),
        (1, "main", "q25", 487, None),
    ]
    assert [c.distance_percent for c in made][:3] == [0, pytest.approx(0.4566, abs=1e-3), -50]
    assert [c.distance_percent for c in made][4:] == [None] * 3
    assert [(c.runs, c.failed) for c in made] == [(5, 0)] * 2 + [(1, 1)] * 2 + [(2, 0)] + [(0, 1)] * 2
    assert {c.endpoints for c in made} == {"A to B"}


def test_the_table_hides_no_failure_and_obeys_no_markup() -> None:
    out = io.StringIO()
    print_downtime(cells(ROWS, ""), "the [setup]", ["4 VFs, " + ROWS[1].failures[0]], ["a note"], out)
    lines = [line.split() for line in out.getvalue().splitlines()]
    assert lines[0] == ["the", "[setup]"]
    assert lines[2][:8] == ["4", "multifd", "1068", "1100", "1150", "1200", "5", "0"]
    assert lines[2][8:] == ["1068", "+0.0", "%", "1095", "+0.5", "%"]
    assert lines[3][6:] == ["1", "1", "1783", "-50.0", "%", "1900", "-53.1", "%"]
    assert lines[4] == ["3", "main", "10", "12", "15", "18", "2", "0"]
    assert lines[5] == ["1", "main", "-", "-", "-", "-", "0", "1", "283", "487"]
    assert out.getvalue().splitlines()[-2:] == ["failed 4 VFs, run 1: lost; [x] \\x1b[31m", "a note"]


def test_the_plot_has_every_run_box_and_published_figure() -> None:
    root = ElementTree.fromstring(downtime_svg(ROWS, cells(ROWS, ""), "setup & <more>"))
    texts = [node.text for node in root.iter(f"{SVG}text")]
    assert "setup & <more>" in texts
    assert texts.count("4 VFs") == 2
    assert "1 run, 1 failed" in texts
    assert len(list(root.iter(f"{SVG}circle"))) == sum(len(row.downtimes_ms) for row in ROWS)
    assert len(list(root.iter(f"{SVG}rect"))) == 1 + 3  # the ground, and a box for each that completed
    marks = [node.text for node in root.iter(f"{SVG}title")]
    assert sorted(mark for mark in marks if mark and mark.endswith(" ms")) == sorted(
        f"published: {ms} ms" for ms in (1068, 1095, 1783, 1900, 283, 487)
    )
    height = float(root.attrib["height"])
    centres = [float(node.attrib["cy"]) for node in root.iter(f"{SVG}circle")]
    assert all(0 < y < height for y in centres)
    assert centres[1] == max(centres[:5])  # the shortest downtime is the lowest dot


def test_a_plot_of_nothing() -> None:
    ElementTree.fromstring(downtime_svg([], [], ""))


# -- runs that go wrong ------------------------------------------------------------------------------


def outcome(what: str = "completed", verified: bool = True, **source: Any) -> Outcome:
    """As run_migration gives it."""
    return Outcome(
        outcome=what,
        source=EndpointStatus(outcome=what, kind="qemu", **source),
        target=EndpointStatus(outcome=what, kind="qemu"),
        verified=verified,
    )


@pytest.fixture(name="outcomes")
def _outcomes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the runs come out like this, one after the other."""

    def come(*each: Outcome) -> None:
        coming: Iterator[Outcome] = iter(each)
        monkeypatch.setattr(downtime, "run_migration", lambda *_, **__: next(coming))

    return come


def test_rounds_go_in_turn_and_failures_are_counted(outcomes: Callable[..., None]) -> None:
    outcomes(
        outcome(downtime_ms=1),
        outcome("lost", error="EIO\n  command: qemu"),
        outcome(downtime_ms=3, verified=False),
        outcome(),
        outcome(downtime_ms=5),
        outcome("crashed", exit_status=EXIT_BEGIN, error="no memory"),
    )
    said: list[str] = []
    main, multifd = measure(MigrationConfig(capture="none"), Pair(), [1], 3, said.append)
    assert (main.downtimes_ms, multifd.downtimes_ms) == ([1, 5], [])
    assert main.failures == ["run 2: completed, but the loaded state is not the saved one"]
    assert multifd.failures == [
        "run 1: lost; source: EIO",
        "run 2: completed, but QEMU reported no downtime",
        "run 3: crashed; source: no memory",
    ]
    assert said[:3] == ["run 1 of 3: 1 VF, main", "run 1 of 3: 1 VF, multifd", "run 2 of 3: 1 VF, main"]


def test_a_qemu_that_cannot_begin_ends_it(outcomes: Callable[..., None]) -> None:
    outcomes(outcome("failed-clean", exit_status=EXIT_BEGIN, error="no seccomp here"))
    with pytest.raises(VfmigError, match="the source could not begin: no seccomp here") as caught:
        measure(MigrationConfig(capture="none"), Pair(), [1], 3, lambda _: None)
    assert caught.value.environment


def test_failed_runs_show_in_the_exit_code(
    outcomes: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes(outcome(downtime_ms=1), outcome("hung"))
    assert execute(["bench", "downtime", *SMALL]) == 5
    said = capsys.readouterr().out
    assert "failed 1 VF, multifd, run 1: hung" in said
    assert "calibration, not validation" in said


# -- the command -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ("--vfs 1,x", 2, "--vfs takes numbers"),
        ("--vfs 0", 2, "from 1 to 30"),
        ("--runs 0", 2, "x>=1"),
        ("--channels 0", 2, "1<=x<=255"),
        ("--plot /nowhere/at/all.svg", 4, "/nowhere/at"),
        ("--qemu /nowhere/qemu", 4, "/nowhere/qemu"),
        ("--state-size 900TiB", 4, "--state-size"),
    ],
)
def test_wrong_use(arguments: str, code: int, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["bench", "downtime", *arguments.split()]) == code
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.out == ""


def test_a_small_real_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "plot.svg"
    options = [*SMALL, "--channels", "2", "--profile", "unlimited", "--json"]
    assert execute(["bench", "downtime", *options, "--plot", str(plot)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["schema"] == "vfmig.bench.downtime/1"
    assert set(said["cells"][0]) == set(Cell.__struct_fields__)
    assert [(c["transfer"], c["channels"], c["published_ms"], c["runs"]) for c in said["cells"]] == [
        ("main", 2, 283, 1),
        ("multifd", 2, 274, 1),
    ]
    for cell, measured in zip(said["cells"], said["measured"], strict=True):
        assert cell["ours_ms"] == cell["lowest_ms"] == cell["median_ms"] == measured["downtimes_ms"][0]
        assert cell["ours_ms"] >= 0
        assert cell["endpoints"].startswith("QEMU ")
    ElementTree.parse(plot)
    assert [path.name for path in tmp_path.iterdir()] == ["plot.svg"]
