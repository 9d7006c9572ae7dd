# SPDX-License-Identifier: GPL-2.0-or-later
"""What grows is judged as it comes: a violation is told before more is written."""

from __future__ import annotations

import heapq
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest

from mockdev.journal import Journal
from mockdev.runtime.config import MigrationConfig
from mockdev.runtime.pcap_writer import PcapngWriter, Tap
from tests.canaries.births import CANARIES
from tests.canaries.lent import lend, qmp
from tests.canaries.script import BACK, MAIN, START_NS, STEP_NS, Script, good
from verifier import evidence
from verifier.capture.opening import CaptureError
from verifier.check import check_path
from verifier.online import Enough, Follower, Message, Online
from verifier.verdict import Standing, Violation

VFMIG = [sys.executable, "-c", "from verifier.cli import main; main()"]
DEADLINE_S = 60.0


def steps(script: Script, folder: Path) -> Iterator[int]:
    """Write an evidence folder as a run does, a piece or a line at a time; the time of each that is there.

    Whoever waits in between has everything up to that time in the files, and nothing that comes after.
    """
    out = PcapngWriter(folder / "capture.pcapng", ["script"])
    journals = {role: Journal(folder / f"{role}.jsonl") for role in script.lines}
    taps: dict[str, Tap] = {}
    for number, where in enumerate(script.streams()):
        ends = ("127.0.0.1", 40000 + number), ("127.0.0.1", script.port)
        taps[where] = out.connection(*ends, START_NS)

    def write(piece: object, time_ns: int) -> None:
        if isinstance(piece, tuple):
            role, line = piece
            journals[role].write(line)
            return
        where = piece.where  # type: ignore[attr-defined]
        tap = taps[MAIN if where == BACK else where]
        (tap.received if where == BACK else tap.sent)([piece.data], time_ns)  # type: ignore[attr-defined]

    files: list[list[tuple[int, object]]] = [[(piece.time_ns, piece) for piece in script.pieces]]
    files += [[(line.t, (role, line)) for line in lines] for role, lines in script.lines.items()]
    try:
        for time_ns, pieces in groupby(heapq.merge(*files, key=itemgetter(0)), key=itemgetter(0)):
            for _, piece in pieces:
                write(piece, time_ns)
            yield time_ns
        for tap in taps.values():
            tap.close(script.now_ns + STEP_NS)
    finally:
        out.close()
        for journal in journals.values():
            journal.close()


@pytest.mark.parametrize("name", ["MP-2", "DS-7", "RP-2", "FR-8", "ST-1", "DS-13", "EQ-3", "BC-4"])
def test_a_violation_is_told_before_the_next_piece_is_written(name: str, tmp_path: Path) -> None:
    script = good()
    CANARIES[name](script)
    whole, growing = tmp_path / "whole", tmp_path / "growing"
    script.write_folder(whole)
    growing.mkdir()
    found = [violation for violation in check_path(whole).violations if violation.id == name]
    witnesses = [{witness.time_ns for witness in violation.witnesses} for violation in found]
    heard: queue.SimpleQueue[Violation] = queue.SimpleQueue()
    told: Violation | None = None
    with Online(growing, heard.put) as online:
        written = set()
        for time_ns in steps(script, growing):
            written.add(time_ns)
            if told is None and any(times <= written for times in witnesses):
                told = heard.get(timeout=DEADLINE_S)
        online.wait()
    assert told is not None
    assert (told.id, online.complaint) == (name, "")
    report = check_path(growing)
    assert (told.id, told.scope) in {(violation.id, violation.scope) for violation in report.violations}
    assert report.standing is Standing.VIOLATED


@pytest.mark.parametrize("alone", [False, True])
def test_what_a_qemu_says_over_qmp_is_heard(alone: bool, tmp_path: Path) -> None:
    """In an evidence folder, and in a log of its own."""
    script = good()
    lend(script)
    log = tmp_path / "target.qmp.jsonl"
    log.write_text("".join(f"{event}\n" for event in script.events["target"]))
    heard: queue.SimpleQueue[Violation] = queue.SimpleQueue()
    with Online(log if alone else tmp_path, heard.put) as online:
        with log.open("a") as growing:
            growing.write(f"{qmp(script.now_ns + 9 * STEP_NS, 'MIGRATION', 'failed')}\n")
        told = heard.get(timeout=DEADLINE_S)
    assert (told.id, online.complaint) == ("SM-4", "")


def test_of_a_good_migration_nothing_is_told_but_its_end(tmp_path: Path) -> None:
    heard: list[Violation] = []
    with Online(tmp_path, heard.append) as online:
        for _ in steps(good(), tmp_path):
            assert not online.ended
        online.wait()
    assert (heard, online.ended, online.complaint) == ([], True, "")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x1f\x8b" + bytes(30), "is compressed"),
        (b"no capture at all, but long enough", "is not a capture"),
        (bytes.fromhex("d4c3b2a1020004000000000000000000ffff000065000000") + b"\xff" * 16, "nonsense"),
        (bytes.fromhex("0a0d0d0a1d0000004d3c2b1a01000000ffffffffffffffff1c000000"), "nonsense"),
    ],
)
def test_what_is_no_growing_capture_is_refused(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "capture"
    path.write_bytes(data)
    messages: list[Message] = []
    looks = iter(range(100))

    def wait(_: float) -> None:
        if next(looks, None) is None:
            raise Enough

    with pytest.raises(CaptureError, match=words):
        Follower(path, messages.append, wait).run()
    assert messages == []


def test_a_judge_that_dies_is_missed(tmp_path: Path) -> None:
    with Online(tmp_path, lambda _: None) as online:
        os.kill(online.pid, signal.SIGKILL)
        online.wait()
    assert "ended with status -9" in online.complaint


# --- the command -------------------------------------------------------------------------------------

# Nobody minds an unused byte of an init packet but the judge: the migration would go on for seconds.
HARMLESS = "channel.0:flip=320"
LONG = "run --stop-at-violation --vfs 1 --channels 2 --ram 1MiB --state-size 512MiB --profile connectx7"
SERIES = "run --stop-at-violation --vfs 1 --state-size 1MiB --profile unlimited --runs 3 --json"


def stopped(place: Path, *options: str) -> tuple[str, dict[str, Any]]:
    """A run that is stopped at its first violation: what it says of it meanwhile, and its record."""
    done = subprocess.run(
        [*VFMIG, *LONG.split(), "--fault", HARMLESS, "-o", str(place), *options],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert done.stdout.startswith("violated")
    return done.stderr, json.loads((place / "run.json").read_bytes())


@pytest.mark.parametrize(
    "options",
    [
        "",
        "--capture headers",
        "--transport unix",
        "--source qemu --target qemu",
        "--source mock --target qemu",
    ],
)
def test_a_run_is_stopped_with_its_evidence(options: str, tmp_path: Path) -> None:
    errors, record = stopped(tmp_path / "out", *options.split())
    assert errors == "vfmig: stopping at CH-6 (SLOWS) on channel 0: an unused byte is set\n"
    assert record["stopped_at"]["id"] == "CH-6"
    report = record["report"]
    assert report["outcome"] != "completed"
    assert {violation["id"] for violation in report["violations"]} == {"CH-6"}
    assert not [unknown for unknown in report["unknown"] if unknown["id"] in ("online", "evidence", "input")]
    again = check_path(tmp_path / "out")
    assert [violation.id for violation in again.violations] == ["CH-6"]


def test_a_series_is_stopped_too(tmp_path: Path) -> None:
    done = subprocess.run(
        [*VFMIG, *SERIES.split(), "--fault", HARMLESS, "-o", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["0000"]
    assert {violation["id"] for violation in json.loads(done.stdout)["violations"]} == {"CH-6"}


def test_a_run_that_keeps_the_rules_goes_to_its_end(tmp_path: Path) -> None:
    config = MigrationConfig(vfs=2, state_bytes=1 << 20, profile="unlimited", ram_bytes=1 << 20, seed=5)
    heard: list[Violation] = []
    report = evidence.run(tmp_path, config, lambda *_: None, on_violation=heard.append)
    assert (report.standing, report.outcome, heard) == (Standing.HOLDS, "completed", [])


def test_the_report_says_when_there_was_no_online_judge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verifier.online._CHILD", "raise SystemExit(3)")
    config = MigrationConfig(vfs=1, state_bytes=1 << 20, profile="unlimited", ram_bytes=1 << 20, seed=5)
    report = evidence.run(tmp_path, config, lambda *_: None, on_violation=lambda _: None)
    assert (report.standing, report.exit_code) == (Standing.UNKNOWN, 5)
    assert any("ended with status 3" in unknown.why for unknown in report.unknown if unknown.id == "online")


class Following:
    """A `vfmig check --follow`; told: the lines that it writes on stderr."""

    def __init__(self, path: Path) -> None:
        pipe = subprocess.PIPE
        command = [*VFMIG, "check", "--follow", str(path)]
        self.process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)
        self.told: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Following:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self._reader.join()

    def output(self) -> str:
        """What it prints, once it has ended."""
        assert self.process.stdout is not None
        self.process.wait(DEADLINE_S)
        return self.process.stdout.read()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.told.put(line)


def test_somebody_elses_capture_is_followed_to_its_end(tmp_path: Path) -> None:
    script = good(journals=False)
    CANARIES["CH-6"](script)
    shown_ns = script.find("init1").time_ns
    with Following(tmp_path / "capture.pcapng") as follower:
        for time_ns in steps(script, tmp_path):
            if time_ns == shown_ns:
                assert "CH-6" in follower.told.get(timeout=DEADLINE_S)
        assert follower.output().startswith("violated")
        assert follower.process.returncode == 1
        assert follower.told.empty()


def test_ctrl_c_ends_the_following_and_gives_the_report(tmp_path: Path) -> None:
    script = good(journals=False)
    CANARIES["CH-6"](script)
    script.ends = dict.fromkeys(script.streams(), "cut")
    script.write_folder(tmp_path)
    with Following(tmp_path / "capture.pcapng") as follower:
        assert "CH-6" in follower.told.get(timeout=DEADLINE_S)
        follower.process.send_signal(signal.SIGINT)
        assert follower.output().startswith("violated")
        assert follower.process.returncode == 1
        assert follower.told.empty()
