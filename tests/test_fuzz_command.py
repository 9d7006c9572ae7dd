# SPDX-License-Identifier: GPL-2.0-or-later
"""`vfmig fuzz`: the same in any number of processes, what it prints and keeps, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mockdev.errors import VfmigError
from tests.variations import VARIATIONS
from verifier import worker
from verifier.check import check_path
from verifier.cli.group import execute
from verifier.fuzz import failure
from verifier.fuzz.campaign import Found, Tally, WorkerError, campaign
from verifier.fuzz.entry import read_entry
from verifier.fuzz.failure import Failure

VFMIG = [sys.executable, "-c", "from verifier.cli import main; main()", "fuzz", "--simulate"]
DEADLINE_S = 30.0


@pytest.fixture
def defect(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a defect into the endpoints as they are; for what is played in this process."""

    def put(name: str) -> None:
        parts = VARIATIONS[name]
        for module in ("campaign", "shrink", "search"):
            monkeypatch.setattr(
                f"verifier.fuzz.{module}.examine",
                lambda scene, *_, **more: failure.examine(scene, parts, **more),
            )

    return put


def fuzz(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = execute(["fuzz", "--simulate", "--json", *arguments])
    return code, json.loads(capsys.readouterr().out)


def test_two_processes_find_what_one_does() -> None:
    one, two = Tally(), Tally()
    campaign(7, 130, 1, one)
    campaign(7, 130, 2, two)
    assert one == two
    assert one.tries == sum(one.outcomes.values()) == 130
    assert not one.found


def test_nothing_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = fuzz(capsys, "--seeds", "60", "--first-seed", "1000", "-o", str(tmp_path / "none"))
    assert code == 0
    assert (report["schema"], report["tries"], report["first_seed"]) == ("vfmig.fuzz/1", 60, 1000)
    assert (report["new"], report["known"], report["first_failing_seed"]) == ([], [], None)
    assert report["per_second"] > 0
    assert sum(report["outcomes"].values()) == 60
    assert len(report["judged"]) > 50
    assert not (tmp_path / "none").exists()


def test_what_is_found_is_kept_known_and_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], defect: Callable[[str], None]
) -> None:
    defect("does-not-wait")
    folder = tmp_path / "scenes"
    code, report = fuzz(capsys, "--seeds", "20", "-o", str(folder), "--stop-at-first")
    assert code == 1
    assert report["known"] == []
    assert report["first_failing_seed"] == min(row["seed"] for row in report["new"])
    row = next(row for row in report["new"] if "OC-2" in row["what"])
    kept = read_entry(Path(row["file"]))
    assert list(kept.failure.what) == row["what"]
    assert row["repeat"] == f"vfmig fuzz --simulate --replay {row['file']}"

    code, again = fuzz(capsys, "--seeds", "20", "-o", str(folder), "--stop-at-first")
    assert code == 1
    assert again["new"] == []
    assert [r["file"] for r in again["known"]] == [r["file"] for r in report["new"]]

    evidence = tmp_path / "evidence"
    code, played = fuzz(capsys, "--replay", row["file"], "-o", str(evidence))
    assert code == 1
    assert played["failure"] == played["expected"]
    assert [v.id for v in check_path(evidence).violations] == row["what"]
    assert execute(["fuzz", "--simulate", "--replay", row["file"]]) == 1
    assert "fails as it did" in capsys.readouterr().out


def test_a_scene_that_does_not_fail_any_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parent.parent / "corpora" / "scenes" / "does-not-wait-0.json"
    code, played = fuzz(capsys, "--replay", str(path), "-o", str(tmp_path))
    assert code == 0
    assert played["failure"] is None
    assert played["variation"] == "does-not-wait"
    assert check_path(tmp_path).exit_code == 0
    assert execute(["fuzz", "--simulate", "--replay", str(path)]) == 0
    assert "does not fail; once it did with does-not-wait: violation (OC-2" in capsys.readouterr().out


def test_a_person_reads_the_seed_and_the_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], defect: Callable[[str], None]
) -> None:
    defect("gives-up")
    code = execute(["fuzz", "--simulate", "--first-seed", "54", "--seeds", "1", "-o", str(tmp_path)])
    said = capsys.readouterr().out
    assert code == 1
    assert "1 way of failing" in said
    assert "OC-3, new: 1 of the seeds, the first is 54" in said
    assert f"again: vfmig fuzz --simulate --replay {tmp_path}/OC-3-54.json" in said


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["fuzz"], 2, "say what to fuzz: --simulate"),
        (["fuzz", "--simulate", "--seeds", "0"], 2, "--seeds"),
        (["fuzz", "--simulate", "--replay", "/nowhere.json"], 4, "/nowhere.json: No such file"),
        (["fuzz", "--simulate", "--seconds", "0"], 2, "--seconds"),
    ],
)
def test_what_cannot_be_is_told(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(arguments) == code
    assert words in capsys.readouterr().err


def test_no_time_no_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = fuzz(capsys, "--seconds", "1e-9", "-o", str(tmp_path))
    assert (code, report["tries"], report["per_second"]) == (5, 0, 0.0)


def test_the_same_failure_of_many_seeds_is_one() -> None:
    tally = Tally()
    for seed, message in ((9, "late"), (4, "early"), (6, "between")):
        tally.find(Found(Failure("violation", ("OC-3",), message), seed))
    tally.find(Found(Failure("violation", ("OC-1",)), 5))
    assert [(f.failure.what, f.failure.message, f.seed, f.seeds) for f in tally.found] == [
        (("OC-3",), "early", 4, 3),
        (("OC-1",), "", 5, 1),
    ]


# -- processes -----------------------------------------------------------------------------------------


def test_a_process_that_dies_is_told_with_its_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    deadly = (
        "import json, os, sys; sys.path[:] = json.loads(sys.argv[1]); import verifier.fuzz.campaign as c;"
        "play = c.play; c.play = lambda first, n: os._exit(7) if first >= 100 else play(first, n); c.serve()"
    )
    monkeypatch.setattr(worker, "_PROGRAM", deadly)
    tally = Tally()
    with pytest.raises(WorkerError, match="seeds 100 to 149 ended with status 7"):
        campaign(0, 150, 2, tally)
    assert issubclass(WorkerError, VfmigError)
    assert tally.tries in (50, 100)  # the other process's batch may have been on its way


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """The command with two processes, all of them at work."""
    process = subprocess.Popen(
        [*VFMIG, "--seeds", "1000000000", "--jobs", "2", "-o", str(tmp_path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    deadline = time.monotonic() + DEADLINE_S
    while len(workers := children(process.pid)) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    yield process, workers
    process.kill()
    process.communicate()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()] + [
        int(word)
        for task in Path(f"/proc/{pid}/task").iterdir()
        if task.name != str(pid)
        for word in (task / "children").read_text().split()
    ]


def await_end(pids: list[int]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "a process has outlived its parent"
        time.sleep(0.01)


def test_ctrl_c_ends_all_and_prints_what_there_is(running: tuple[subprocess.Popen[bytes], list[int]]) -> None:
    process, workers = running
    os.kill(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert errors == b"vfmig: interrupted\n"
    assert output.startswith((b"nothing failed", b"no seed was played"))
    await_end(workers)


def test_nothing_outlives_a_command_that_was_killed(
    running: tuple[subprocess.Popen[bytes], list[int]],
) -> None:
    process, workers = running
    process.kill()
    process.communicate()
    await_end(workers)
