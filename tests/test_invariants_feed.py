# SPDX-License-Identifier: GPL-2.0-or-later
"""What is fed piece by piece is judged as the same migration in files is, and seen as it comes."""

from __future__ import annotations

from pathlib import Path

import pytest

from mockdev.wire.frames import DeviceStateFrame, RamFrame
from tests.canaries.bench_of_one import judge
from tests.canaries.births import CANARIES
from tests.canaries.script import BUFFERS, MAIN, Script, good
from verifier.capture.packets import Address
from verifier.check import check_path
from verifier.history.observation import Seen
from verifier.invariants.feed import Feed
from verifier.verdict import Report, Standing


def gist(report: Report) -> object:
    """A report without what it says of files, places in journals and the making of TCP."""
    violations = sorted((v.id, v.scope, v.message, len(v.witnesses)) for v in report.violations)
    unknown = sorted(u.id for u in report.unknown)
    return violations, unknown, report.exercised.invariants, report.devices, report.standing, report.outcome


def made(name: str) -> Script:
    """The good script, or the canary of that name."""
    script = good()
    if name:
        CANARIES[name](script)
    return script


def bytes_and_lines(name: str) -> bool:
    """Whether that script has no logs of QEMU and no run.json, and its connections end as usual."""
    script = made(name)
    plain = not script.logs and not script.events and not script.record
    return plain and not script.ends and not script.closed_ns


@pytest.mark.parametrize("name", [n for n in ("", *CANARIES) if bytes_and_lines(n)])
def test_it_is_judged_as_the_files_are(name: str, tmp_path: Path) -> None:
    made(name).write_folder(tmp_path)
    assert gist(judge(made(name), lines=True)) == gist(check_path(tmp_path))


@pytest.mark.parametrize("piece_bytes", [1, 7, 300])
def test_how_bytes_are_cut_into_pieces_makes_no_difference(piece_bytes: int) -> None:
    whole = judge(good(), lines=True)
    assert whole.standing is Standing.HOLDS
    assert judge(good(), lines=True, piece_bytes=piece_bytes) == whole


def test_every_frame_is_handed_on_when_its_head_has_come() -> None:
    seen: list[Seen] = []
    report = judge(good(), lines=True, on_seen=seen.append)
    frames = [one.event for one in seen]
    assert sum(isinstance(f, DeviceStateFrame) for f in frames) == sum(BUFFERS) + len(BUFFERS)
    assert report.exercised.frames <= len(frames)
    times = [one.time_ns for one in seen]
    assert times == sorted(times)

    fed: list[object] = []
    feed = Feed(on_seen=lambda one: fed.append(one.event))
    channel = feed.connection(Address("10.0.0.1", 40001), Address("10.0.0.2", 4444))
    data = good().find("init0").data + good().find("sync0.0").data
    channel.sent(data[:-1], 1)
    assert not any(isinstance(event, RamFrame) for event in fed)
    channel.sent(data[-1:], 2)
    assert any(isinstance(event, RamFrame) for event in fed)


def test_a_connection_that_is_not_closed_breaks_off() -> None:
    script = good(journals=False)
    feed = Feed()
    main = feed.connection(Address("10.0.0.1", 40000), Address("10.0.0.2", 4444))
    for piece in script.pieces:
        if piece.where == MAIN and piece.label != "eof":
            main.sent(piece.data, piece.time_ns)
    report = feed.report()
    assert report.standing is not Standing.HOLDS
    assert any("ends before the end of its stream" in unknown.why for unknown in report.unknown)
