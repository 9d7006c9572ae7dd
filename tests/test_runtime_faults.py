# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults of devices in whole migrations of our own endpoints: what they do to each end, and that both end."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mockdev.errors import VfmigError
from mockdev.journal import Mark, read
from mockdev.runtime.config import MigrationConfig
from tests.endpoints import migrate
from verifier.check import check_path

MIB = 1 << 20
SHAPE = {"vfs": 2, "channels": 2, "state_bytes": 2 * MIB, "chunk_bytes": MIB // 2}


@pytest.mark.parametrize("transfer", ["multifd", "main"])
@pytest.mark.parametrize(
    ("fault", "end", "error"),
    [
        ("source.vf0.save:eio@64KiB", "source", "EIO: .*0000:00:02.0/vfio: injected at byte 65536"),
        ("source.vf1.save:eio@#1", "source", "EIO: .*0000:00:03.0/vfio: injected at byte"),
        (
            "source.vf1.arc.STOP_COPY:eio",
            "source",
            "EIO: 0000:00:03.0/vfio: injected on the arc to STOP_COPY",
        ),
        ("source.vf1.arc.STOP_COPY:after=eio", "source", "EIO: 0000:00:03.0/vfio: injected on the arc"),
        ("source.vf1.arc.STOP_COPY:error=eio", "source", "EIO: 0000:00:03.0/vfio: injected on the arc"),
        ("source.vf0:reset@1MiB", "source", "ENODEV: .*the save session has ended"),
        ("target.vf1.load:enomem@1MiB", "target", "ENOMEM: .*0000:00:03.0/vfio: injected at byte 1048576"),
        ("target.vf0.load:enomem@#2", "target", "ENOMEM: .*0000:00:02.0/vfio: injected from 1048576"),
        ("target.vf0.config:eio", "target", "EIO: 0000:00:02.0/vfio: injected"),
        ("target.vf0:reset@1MiB", "target", "ENODEV: .*the resume session has ended"),
        ("target.vf0:reset@+0ms", "target", "ENODEV: .*(the resume session has ended|was reset)"),
        ("target.vf0:detach@+0ms", "target", "ENODEV|ENOTCONN"),
        ("target.vf1.arc.RUNNING_P2P:after=eio", "target", "EIO: 0000:00:03.0/vfio: injected on the arc"),
        ("target.vf1.arc.RUNNING_P2P:error=eio", "target", "EIO: 0000:00:03.0/vfio: injected on the arc"),
        ("target.vf1.arc.RUNNING:eio", "target", "EIO: 0000:00:03.0/vfio: injected on the arc to RUNNING"),
    ],
)
def test_a_failing_device_fails_the_migration_and_the_source_runs_on(
    tmp_path: Path, transfer: str, fault: str, end: str, error: str
) -> None:
    outcome = migrate(tmp_path, faults=(fault,), transfer=transfer, **SHAPE)
    assert outcome.outcome == "failed-clean", outcome
    status = outcome.source if end == "source" else outcome.target
    assert re.search(error, status.error), status
    assert (outcome.source.runs, outcome.target.runs) == (True, False)
    lines = list(read(tmp_path / f"{end}.jsonl"))
    assert [line.name for line in lines if isinstance(line, Mark)].count("fault") == 1
    assert not check_path(tmp_path).violations


def test_a_source_whose_device_is_gone_cannot_run_on(tmp_path: Path) -> None:
    outcome = migrate(tmp_path, faults=("source.vf0:detach@1MiB",), **SHAPE)
    assert outcome.outcome == "lost", outcome


@pytest.mark.parametrize("how", ["eio", "after=eio", "error=eio"])
def test_a_device_that_fails_when_all_has_been_sent_fails_no_migration(tmp_path: Path, how: str) -> None:
    faults = (f"source.vf0.arc.STOP:{how}",)
    outcome = migrate(tmp_path, faults=faults, precopy_bytes=1 << 20, **SHAPE)
    assert (outcome.outcome, outcome.verified) == ("completed", True), outcome
    assert not check_path(tmp_path).violations


@pytest.mark.parametrize(
    "fault",
    [
        "source.vf0.save:stall=100ms@1MiB",
        "source.vf0.save:short=1000",
        "source.vf0.arc.STOP_COPY:stall=100ms",
        "target.vf0.load:stall=100ms@#1",
        "target.vf1.config:stall=100ms",
    ],
)
@pytest.mark.parametrize("profile", ["unlimited", "connectx7"])
def test_a_slow_device_is_waited_for(tmp_path: Path, fault: str, profile: str) -> None:
    outcome = migrate(tmp_path, faults=(fault,), profile=profile, **SHAPE)
    assert (outcome.outcome, outcome.verified) == ("completed", True), outcome
    if "stall" in fault:
        assert outcome.downtime_ms is not None
        assert outcome.downtime_ms >= 100


def test_a_false_end_is_found_by_comparing_alone(tmp_path: Path) -> None:
    outcome = migrate(tmp_path, faults=("source.vf0.save:eof@1MiB",), **SHAPE)
    assert (outcome.outcome, outcome.verified) == ("completed", False), outcome


def test_a_question_of_precopy_that_fails(tmp_path: Path) -> None:
    outcome = migrate(tmp_path, faults=("source.vf1.precopy:eio",), precopy_bytes=MIB, **SHAPE)
    assert outcome.outcome == "failed-clean", outcome
    assert outcome.source.error == "EIO: 0000:00:03.0/vfio: injected"


def test_faults_that_are_none_are_refused_with_the_configuration() -> None:
    with pytest.raises(VfmigError, match=r"fault 'source\.vf4\.save:eio': there is no vf4 in this run"):
        MigrationConfig(faults=("source.vf4.save:eio",)).check()
