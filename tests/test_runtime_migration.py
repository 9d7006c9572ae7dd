# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole migrations within one process: every shape of one ends complete, with equal images."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from mockdev.device.resuming import ResumeFile
from mockdev.errors import VfmigError
from mockdev.journal import Image, Loaded, Mark, Received, Saved, Sent, State
from mockdev.lab.migration import Cancel, run_migration
from mockdev.runtime import slot
from mockdev.runtime.config import MigrationConfig
from mockdev.runtime.intake import Intake
from mockdev.runtime.pump import SendPump
from tests.endpoints import SMALL, lines, migrate
from verifier.bench.cap import CONFIG_BYTES

KIB = 1 << 10


def check_evidence(folder: Path, vfs: int) -> None:
    """Both journals agree: every buffer saved, sent, received, loaded once, in order; digests equal."""
    ours, theirs = lines(folder, "source"), lines(folder, "target")
    devices = sorted({line.device for line in ours if isinstance(line, Image)})
    assert len(devices) == vfs
    saved = {
        line.device: (line.size, line.digest, line.config_digest) for line in ours if isinstance(line, Image)
    }
    loaded = {
        line.device: (line.size, line.digest, line.config_digest)
        for line in theirs
        if isinstance(line, Image)
    }
    assert saved == loaded
    for device in devices:
        steps = {
            kind: [
                (line.idx, line.size)
                for line in (ours if kind in (Saved, Sent) else theirs)
                if isinstance(line, kind) and line.device == device
            ]
            for kind in (Saved, Sent, Received, Loaded)
        }
        assert steps[Saved] == steps[Loaded]
        assert sorted(steps[Saved]) == sorted(steps[Sent]) == sorted(steps[Received])
        indices = [idx for idx, _ in steps[Loaded] if idx >= 0]
        assert indices == list(range(len(indices)))
        states = [line.new for line in theirs if isinstance(line, State) and line.device == device]
        assert states == ["RUNNING_P2P", "STOP", "RESUMING", "STOP", "RUNNING_P2P", "RUNNING"]


@pytest.mark.parametrize("transfer", ["multifd", "main"])
@pytest.mark.parametrize("precopy_bytes", [0, 40 * KIB])
@pytest.mark.parametrize(("vfs", "channels"), [(1, 1), (1, 7), (2, 25), (4, 6), (8, 2), (8, 25)])
def test_every_shape(tmp_path: Path, transfer: str, precopy_bytes: int, vfs: int, channels: int) -> None:
    outcome = migrate(
        tmp_path,
        vfs=vfs,
        channels=channels,
        transfer=transfer,
        precopy_bytes=precopy_bytes,
        state_bytes=257 * KIB + 13,
        buffer_bytes=16 * KIB,
        chunk_bytes=100_000,
        queue_cap_bytes=512 * KIB if vfs == 4 else None,
        seed=vfs,
    )
    assert outcome.outcome == "completed", outcome
    assert outcome.verified is True
    assert outcome.target.runs
    assert not outcome.source.runs
    assert outcome.downtime_ms is not None
    assert outcome.downtime_ms > 0
    check_evidence(tmp_path, vfs)


def test_images_are_digested_when_the_devices_run(tmp_path: Path) -> None:
    migrate(tmp_path, vfs=2, channels=2)
    theirs = lines(tmp_path, "target")
    resumed = next(at for at, line in enumerate(theirs) if isinstance(line, Mark) and line.name == "resume")
    assert all(at > resumed for at, line in enumerate(theirs) if isinstance(line, Image))


@pytest.mark.parametrize(
    ("buffer_bytes", "chunk_bytes"),
    [(7 * KIB, 16 * KIB), (4096, 4096), (4096, 4080), (4096, 333), (1000, 4091)],
)
@pytest.mark.parametrize("channels", [1, 5])
def test_headers_may_lie_anywhere_in_a_buffer(
    tmp_path: Path, buffer_bytes: int, chunk_bytes: int, channels: int
) -> None:
    outcome = migrate(
        tmp_path,
        vfs=2,
        channels=channels,
        state_bytes=100 * KIB + 13,
        buffer_bytes=buffer_bytes,
        chunk_bytes=chunk_bytes,
    )
    assert outcome.verified
    check_evidence(tmp_path, 2)


def test_all_but_the_first_buffer_is_received_where_it_will_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = 0
    receive = ResumeFile._receive

    def count(file: ResumeFile, piece: memoryview) -> None:
        nonlocal copied
        if piece.obj is not file._image.obj:
            copied += len(piece)
        receive(file, piece)

    monkeypatch.setattr(ResumeFile, "_receive", count)
    # A buffer that comes before the target has read SWITCHOVER_START is kept elsewhere: none is to.
    started = threading.Event()
    start, start_saving = Intake.start, SendPump.start_saving

    def started_too(intake: Intake) -> None:
        start(intake)
        started.set()

    def once_started(pump: SendPump) -> None:
        assert started.wait(60)
        start_saving(pump)

    monkeypatch.setattr(Intake, "start", started_too)
    monkeypatch.setattr(SendPump, "start_saving", once_started)
    migrate(tmp_path, vfs=1, channels=1, state_bytes=257 * KIB, buffer_bytes=7 * KIB, chunk_bytes=16 * KIB)
    assert 0 < copied < 7 * KIB


def test_not_everything_waits_for_its_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot, "_UNDIGESTED_VIEWS_MAX", 3)
    monkeypatch.setattr(slot, "_ASIDE_BYTES_MAX", 20)
    migrate(tmp_path, vfs=2, channels=3, buffer_bytes=7 * KIB, chunk_bytes=16 * KIB)
    check_evidence(tmp_path, 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"profile": "opaque"},
        {"profile": "connectx7", "vfs": 2},
        {"profile": "connectx7", "vfs": 2, "transfer": "main", "precopy_bytes": 1000},
        {"profile": "connectx7", "vfs": 3, "load_threads": 1},
        {"load_threads": 2},
        {"load_threads": 99},
        {"zero_pages": "legacy"},
        {"zero_pages": "none"},
        {"transfer": "main", "channels": 0},
        {"transport": "unix"},
        {"transport": "tcp"},
        {"ram_bytes": 0},
        {"state_bytes": 1},
        {"buffer_bytes": 1, "state_bytes": 300, "vfs": 2},
        {"dialect": "11.1", "uuid": "12345678-1234-5678-9abc-123456789abc"},
        {"in_flight_max": 1},
        {"socket_buffer_bytes": 4096},
        {"capture": "full", "capture_at": "target"},
        {"capture": "headers"},
    ],
)
def test_every_option(tmp_path: Path, changes: dict[str, object]) -> None:
    vfs = changes.get("vfs", 4)
    assert isinstance(vfs, int)
    outcome = migrate(tmp_path, **{"state_bytes": 300 * KIB, "buffer_bytes": 64 * KIB, **changes})
    assert (outcome.outcome, outcome.verified) == ("completed", True), outcome
    check_evidence(tmp_path, vfs)


def test_marks_in_their_order(tmp_path: Path) -> None:
    migrate(tmp_path, state_bytes=KIB, precopy_bytes=100)
    ours = [line.name for line in lines(tmp_path, "source") if isinstance(line, Mark)]
    ours.remove("pong")  # whenever it arrives
    assert ours == ["ping", "precopy", "stop", "switchover-start", "end-of-stream", "shut"]
    theirs = [line.name for line in lines(tmp_path, "target") if isinstance(line, Mark)]
    names = ["ping", "pong", "switchover-start", "end-of-stream", "queued-bytes-max", "resume", "shut"]
    assert theirs == names


def test_over_the_cap_fails_cleanly_on_both_sides(tmp_path: Path) -> None:
    outcome = migrate(tmp_path, state_bytes=64 * KIB, buffer_bytes=16 * KIB, queue_cap_bytes=16 * KIB - 1)
    assert outcome.outcome == "failed-clean"
    assert "over the cap of 16383" in outcome.target.error
    assert "channel" in outcome.target.error
    assert "SHUT 1" in outcome.source.error
    assert outcome.source.runs
    assert not outcome.target.runs


def test_a_cap_of_all_that_comes_is_enough_however_late_it_is_loaded(tmp_path: Path) -> None:
    """No smaller one is, however few are in flight: the sockets hold more, and a target begins to load when
    SWITCHOVER_START has come, which buffers overtake, for it comes on another connection.
    """
    shape: dict[str, object] = {"vfs": 1, "channels": 1, "profile": "opaque", "load_late": True}
    shape |= {"state_bytes": 64 * KIB, "buffer_bytes": 16 * KIB}
    cap = 64 * KIB + CONFIG_BYTES
    outcome = migrate(tmp_path / "all", queue_cap_bytes=cap, **shape)
    assert outcome.outcome == "completed", outcome
    outcome = migrate(tmp_path / "less", queue_cap_bytes=cap - 1, **shape)
    assert outcome.outcome == "failed-clean", outcome
    assert f"over the cap of {cap - 1}" in outcome.target.error


def test_cancel_brings_both_down(tmp_path: Path) -> None:
    cancel = Cancel()
    config = MigrationConfig(
        **{**SMALL, "profile": "connectx7", "state_bytes": 64 << 20, "vfs": 2}  # type: ignore[arg-type]
    )

    cancel.cancel()
    outcome = run_migration(config, tmp_path, cancel=cancel)
    assert outcome.outcome in ("cancelled", "lost")
    assert not outcome.target.runs
    assert "cancelled" in {outcome.source.outcome, outcome.target.outcome}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vfs": 0}, "0 devices"),
        ({"vfs": 31}, "31 devices"),
        ({"channels": 0}, "0 channels"),
        ({"channels": 256}, "256 channels"),
        ({"profile": "x"}, "no profile 'x'"),
        ({"dialect": "9.2"}, "dialect 9.2"),
        ({"dialect": "7.7"}, "no dialect '7.7'"),
        ({"precopy_bytes": 1 << 40}, "before the stop"),
        ({"queue_cap_bytes": 0}, "queue cap"),
        ({"load_threads": 0}, "load threads"),
        ({"ram_bytes": 5}, "4096-byte pages"),
        ({"buffer_bytes": 1 << 21}, "buffers of"),
        ({"uuid": "x"}, "not a uuid"),
        ({"state_bytes": 0}, "state of 0"),
        ({"idle_timeout_s": 0.0}, "idle timeout"),
        ({"pool_bytes_max": 1}, "a pool of 1"),
    ],
)
def test_a_configuration_that_cannot_run_is_named(
    tmp_path: Path, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(VfmigError, match=words):
        migrate(tmp_path / "new", **changes)
    assert not (tmp_path / "new").exists()
