# SPDX-License-Identifier: GPL-2.0-or-later
"""Any mix of inputs, good and bad: each is judged on its own, and what cannot be read hides nothing."""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import msgspec
import pytest

from mockdev.journal import End
from mockdev.runtime.pcap_writer import Elided, PcapngWriter
from tests.canaries.script import DEVICES, MAIN, START_NS, STEP_NS, Script, good, packet
from verifier.check import check_each, check_path, check_paths
from verifier.verdict import Report, Standing


def capture(path: Path, script: Script | None = None) -> Path:
    """A capture file of a script."""
    (script or good(journals=False)).write_capture(path)
    return path


def reasons(report: Report) -> str:
    """All that is unknown, in one string."""
    return "\n".join(f"{u.id}: {u.why}" for u in report.unknown)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("empty", b"", "empty"),
        ("text", b"hello, this is no capture", "text"),
        ("x.jsonl", b'{"event":"mark","t":1,"name":"x"}\n', "schema"),
    ],
)
def test_files_that_are_nothing_we_read(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    report = check_path(path)
    assert report.standing is Standing.UNKNOWN
    assert report.exit_code == 4
    (row,) = report.unreadable
    assert sentence in row.error


def test_missing_files_and_folders_that_hold_nothing(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        report = check_path(path)
        assert report.exit_code == 4
        assert str(path) in report.inputs[0].error


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_mix_keeps_each_verdict(tmp_path: Path, jobs: int) -> None:
    fine = capture(tmp_path / "fine.pcapng")
    broken = good(journals=False)
    broken.drop("vf0.1")
    wrong = capture(tmp_path / "wrong.pcapng", broken)
    folder = tmp_path / "run"
    good().write_folder(folder)
    nothing = tmp_path / "nothing"
    reports = check_each([fine, wrong, folder, nothing], jobs)
    assert [r.exit_code for r in reports] == [0, 1, 0, 4]
    merged = check_paths([fine, wrong, folder, nothing], jobs)
    assert merged.standing is Standing.VIOLATED
    assert merged.exit_code == 1
    assert len(merged.devices) == 6
    assert [row.path for row in merged.unreadable] == [str(nothing)]
    assert merged.dialect == "10.0"
    assert check_paths([fine, nothing]).exit_code == 4
    assert check_paths([fine, folder]).exit_code == 0


def test_the_report_is_json_and_counts_what_it_rests_on(tmp_path: Path) -> None:
    good().write_folder(tmp_path)
    (tmp_path / "run.json").write_text('{"seed": 42}')
    report = check_path(tmp_path)
    raw = msgspec.json.decode(msgspec.json.encode(report))
    assert raw["schema"] == "vfmig.report/1"
    assert (raw["standing"], raw["outcome"], raw["transfer"], raw["channels"]) == (
        "holds",
        "completed",
        "multifd",
        2,
    )
    assert raw["seed"] == 42
    assert raw["exercised"]["devices"] == 2
    assert raw["exercised"]["bytes"] == sum(len(p.data) for p in good().pieces)
    assert raw["exercised"]["invariants"]["DS-5"] == {"standing": "holds", "partitions": 2, "observations": 7}
    device = raw["devices"][0]
    assert device["id"] == DEVICES[0]
    assert device["saved_digest"] == device["loaded_digest"] == device["wire_digest"]
    assert device["equal"] is True
    assert raw["timing"]["downtime_ms"] > 0


def test_compressed_captures_are_judged_alike(tmp_path: Path) -> None:
    plain = capture(tmp_path / "c.pcapng")
    packed = tmp_path / "c.pcapng.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    one, other = check_path(plain), check_path(packed)
    assert one.standing is other.standing is Standing.HOLDS
    assert one.devices == other.devices
    assert one.inputs[0].digest != other.inputs[0].digest


def test_a_capture_that_keeps_headers_only_holds_beside_journals(tmp_path: Path) -> None:
    import xxhash

    script = good()
    script.write_folder(tmp_path)
    out = PcapngWriter(tmp_path / "capture.pcapng", ["tap"])
    taps = {
        w: out.connection(("127.0.0.1", 1000 + n), ("127.0.0.1", 1), START_NS)
        for n, w in enumerate(script.streams())
    }
    for piece in script.pieces:
        if piece.label.startswith("vf") and piece.where != MAIN:
            head, payload = piece.data[:288], piece.data[288:]
            digest = "xxh3-128:" + xxhash.xxh3_128_hexdigest(payload)
            taps[piece.where].sent([head], piece.time_ns, Elided(len(payload), digest))
        elif piece.where == "back":
            taps[MAIN].received([piece.data], piece.time_ns)
        else:
            taps[piece.where].sent([piece.data], piece.time_ns)
    for tap in taps.values():
        tap.close(script.now_ns + STEP_NS)
    out.close()
    report = check_path(tmp_path)
    assert report.standing is Standing.HOLDS, reasons(report)
    assert [(d.wire_digest, d.equal) for d in report.devices] == [(None, True), (None, True)]
    assert sum(f.lost_bytes for f in report.exercised.accounting[0].flows) == 5 * 40 + 2 * 48


def test_a_cut_capture_is_unknown_and_its_good_part_is_accounted_for(tmp_path: Path) -> None:
    whole = capture(tmp_path / "whole.pcapng").read_bytes()
    path = tmp_path / "cut.pcapng"
    for part in range(1, 20):
        path.write_bytes(whole[: len(whole) * part // 20])
        report = check_path(path)
        assert report.standing is Standing.UNKNOWN, part
        assert report.violations == []
        for flow in report.exercised.accounting[0].flows:
            assert flow.decoded_bytes + flow.lost_bytes + flow.undecodable_bytes == flow.total_bytes


def test_no_end_of_connections_in_the_capture_does_not_hide_a_whole_migration(tmp_path: Path) -> None:
    script = good(journals=False)
    script.ends = {MAIN: "cut", "0": "cut", "1": "cut"}
    assert check_path(capture(tmp_path / "c.pcapng", script)).standing is Standing.HOLDS


def test_a_reset_of_the_main_connection_leaves_the_outcome_unknown(tmp_path: Path) -> None:
    script = good(journals=False)
    script.ends = {MAIN: "rst"}
    report = check_path(capture(tmp_path / "c.pcapng", script))
    assert report.standing is Standing.UNKNOWN
    assert report.outcome is None
    assert "reset" in reasons(report)


def test_a_target_that_says_it_failed_leaves_the_rest_unknown(tmp_path: Path) -> None:
    script = good(journals=False)
    script.patch("shut", 7, b"\1")
    script.drop("vf0.3")
    report = check_path(capture(tmp_path / "c.pcapng", script))
    assert report.standing is Standing.UNKNOWN
    assert "SHUT 1" in reasons(report)


def test_journals_alone_are_judged(tmp_path: Path) -> None:
    script = good()
    script.pieces.clear()
    script.write_folder(tmp_path)
    report = check_path(tmp_path)
    assert report.standing is Standing.HOLDS, reasons(report)
    assert "EQ-5" not in report.exercised.invariants  # there is no capture that it could be about
    alone = check_path(tmp_path / "source.jsonl")
    assert alone.standing is Standing.UNKNOWN
    assert alone.violations == []


def test_outcomes_come_from_the_journals(tmp_path: Path) -> None:
    for number, (source, target, outcome) in enumerate(
        [
            (("failed", True), ("failed", False), "failed-clean"),
            (("cancelled", True), ("failed", False), "cancelled"),
            (("failed", True), ("failed", True), "split-brain"),
            (("failed", False), ("failed", False), "lost"),
        ]
    ):
        script = good()
        for role, (word, runs) in (("source", source), ("target", target)):
            script.edit(role, End, outcome=word, runs=runs)
        folder = tmp_path / str(number)
        script.write_folder(folder)
        assert check_path(folder).outcome == outcome
    script = good()
    script.lines["target"].pop()
    script.write_folder(tmp_path / "dead")
    assert check_path(tmp_path / "dead").outcome == "crashed"


def test_a_journal_that_turns_bad_counts_up_to_there(tmp_path: Path) -> None:
    good().write_folder(tmp_path)
    path = tmp_path / "source.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]) + b"rubbish\n" + b"".join(lines[5:]))
    report = check_path(tmp_path)
    assert report.standing is not Standing.HOLDS
    assert "not a journal line" in reasons(report)


def test_a_flood_of_devices_takes_bounded_memory_and_is_said(tmp_path: Path) -> None:
    script = good(journals=False)
    flood = b"".join(packet(0, 0, b"x").replace(b"0000:00:02.0", b"%04x:00:02.0" % n) for n in range(5000))
    script.after("vf0.0", "0", flood)
    report = check_path(capture(tmp_path / "c.pcapng", script))
    assert report.standing is Standing.VIOLATED
    assert len(report.violations) < 200


def test_a_judge_that_dies_takes_only_its_own_verdict_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = tmp_path / "done"
    deadly = "os._exit(7) if 'deadly' in p else (open(p + '.seen', 'w').close(), check_path(p))[1]"
    worker = (
        "import json, os, sys; sys.path[:] = json.loads(sys.argv[1]); import verifier.check as c;"
        f"check_path = c.check_path; c.check_path = lambda p: {deadly}; c.serve()"
    )

    def patient(path: Path) -> Report:
        """This process's share: one input, for as long as the other process judges the rest."""
        while not Path(f"{done}.seen").exists():
            time.sleep(0.001)
        return check_path(path)

    monkeypatch.setattr("verifier.worker._PROGRAM", worker)
    monkeypatch.setattr("verifier.check.check_path", patient)
    fine, killer, last = capture(tmp_path / "fine.pcapng"), capture(tmp_path / "deadly.pcapng"), capture(done)
    # Each of the two takes one of the first two before the other process has even started.
    reports = check_each([fine, fine, killer, fine, killer, last], 2)
    assert [r.exit_code for r in reports] == [0, 0, 4, 0, 4, 0]
    assert "ended with status 7" in reports[2].inputs[0].error
