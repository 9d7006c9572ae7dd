# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's trace logs are read line by line, with and without times, through whatever stands between."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.canaries.lent import lend
from tests.canaries.script import good
from verifier.capture.opening import CaptureError
from verifier.history.listing import Entry, list_lines
from verifier.history.observation import (
    LoadTrace,
    OtherTrace,
    PacketTrace,
    Said,
    StatusTrace,
    ThreadTrace,
    Trace,
    VmTrace,
)
from verifier.history.traces import LINE_BYTES_MAX, is_trace_log, read_traces

T = 1_700_000_000_123_456_000


def traced(tmp_path: Path, content: bytes, role: str = "target") -> list[Said]:
    """What is read of a log."""
    path = tmp_path / "x.log"
    path.write_bytes(content)
    return list(read_traces(path, role))


@pytest.mark.parametrize(
    ("text", "trace"),
    [
        (
            "multifd_send_fill channel 1 packet_num 3 flags 0x21 next packet size 122880",
            PacketTrace(T, "multifd_send_fill", 1, 3, 0x21, 122880),
        ),
        (
            "multifd_recv_unfill channel 0 packet_num 7 flags 0x0 next packet size 0",
            PacketTrace(T, "multifd_recv_unfill", 0, 7, 0, 0),
        ),
        ("multifd_recv_thread_start 2", ThreadTrace(T, "multifd_recv_thread_start", 2, None)),
        (
            "multifd_send_thread_end channel 2 packets 71",
            ThreadTrace(T, "multifd_send_thread_end", 2, 71),
        ),
        (
            "vfio_load_state_device_buffer_load_start  (VFIO_FD10001) idx 4",
            LoadTrace(T, "vfio_load_state_device_buffer_load_start", "VFIO_FD10001", 4),
        ),
        ("vfio_load_bufs_thread_end  (vf0)", LoadTrace(T, "vfio_load_bufs_thread_end", "vf0", None)),
        ("migrate_set_state new state pre-switchover", StatusTrace(T, "migrate_set_state", "pre-switchover")),
        (
            "vfio_vmstate_change  (vf0) running 0 reason finish-migrate device state STOP",
            VmTrace(T, "vfio_vmstate_change", "vf0", 0, "finish-migrate", "STOP"),
        ),
        ("vfio_save_block  (vf0) data_size 10", OtherTrace(T, "vfio_save_block", "(vf0) data_size 10")),
        ("runstate_set current_run_state 9", OtherTrace(T, "runstate_set", "current_run_state 9")),
        ("multifd_send_fill of another release", OtherTrace(T, "multifd_send_fill", "of another release")),
    ],
)
def test_events_and_their_fields(text: str, trace: Trace, tmp_path: Path) -> None:
    for line in (f"4711@1700000000.123456:{text} ", f"2023-11-14T22:13:20.123456Z {text}"):
        (said,) = traced(tmp_path, line.encode() + b"\n")
        assert said.line == trace
        assert (said.role, said.offset, said.size, said.where) == ("target", 0, len(line) + 1, "trace log")


def test_a_line_without_a_time_has_that_of_the_line_before(tmp_path: Path) -> None:
    content = b"migration_cancel \n1@5.000000:migration_cancel \nmigration_cancel \n"
    assert [said.time_ns for said in traced(tmp_path, content)] == [0, 5 * 10**9, 5 * 10**9]


def test_noise_between_lines_and_before_an_event_hides_no_event(tmp_path: Path) -> None:
    content = (
        b"qemu-system-x86_64: warning: something\n"
        b"1@5.000001:migrate_set_state new state setup \n"
        b"\xff\xfe\x00 bytes\n\n"
        b"qemu-system-x86_64: 1@5.000002:migrate_set_state new state active \n"
        b"warning: " + b"9" * (3 * LINE_BYTES_MAX) + b"\n"
        b"qemu-system-x86_64: migrate_set_state new state failed\n"
        b"1@5.000003:migrate_set_state new state com"
    )
    lines = [said.line for said in traced(tmp_path, content)]
    assert [line.status for line in lines if isinstance(line, StatusTrace)] == ["setup", "active", "failed"]
    assert len(lines) == 3


@given(
    st.lists(st.one_of(st.binary(max_size=80), st.just(b"1@5.000003:vfio_x "), st.just(b"\n")), max_size=30)
)
def test_no_content_is_an_error_and_places_are_in_the_file(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]
) -> None:
    content = b"".join(parts)
    for said in traced(tmp_path_factory.mktemp("t"), content):
        line = content[said.offset : said.offset + said.size]
        assert line.endswith(b"\n")
        assert isinstance(said.line, OtherTrace)
        assert said.line.event.encode() in line


@pytest.mark.parametrize(
    ("head", "is_one"),
    [
        (b"vfio_save_setup  (vf0) data buffer size 0x100000\n", True),
        (b"2026-01-01T00:00:00.000Z multifd_send_thread_start 1\n", True),
        (b"1@5.000001:anything_at_all x\n", True),
        (b"qemu-system-x86_64: warning: x\nmigration_cancel \n", True),
        (b"Traceback (most recent call last):\n", False),
        (b"\x0a\x0d\x0d\x0a\0\0\0\1\nvfio_save_setup x\n", False),
        (b"", False),
    ],
)
def test_logs_are_told_from_other_files(head: bytes, is_one: bool) -> None:
    assert is_trace_log(head) is is_one


@pytest.mark.parametrize(
    ("text", "role"),
    [
        (b"multifd_send_thread_start 1", "source"),
        (b"vfio_save_setup  (vf0) data buffer size 1", "source"),
        (b"migration_set_incoming_channel ioc=0x1", "target"),
        (b"migration_cancel ", "target"),
    ],
)
def test_a_log_alone_tells_whose_it_is(text: bytes, role: str, tmp_path: Path) -> None:
    (_, said) = traced(tmp_path, b"vfio_reset_handler \n" + text + b"\n", role="")
    assert said.role == role


def test_a_missing_log_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="no such file"):
        list(read_traces(tmp_path / "x.log", "source"))


def test_logs_and_journals_are_listed_on_one_time_line(tmp_path: Path) -> None:
    script = good()
    lend(script)
    script.write_folder(tmp_path)
    entries: list[Entry] = []
    journals = [tmp_path / "source.jsonl", tmp_path / "target.jsonl"]
    list_lines(
        journals, {"source": tmp_path / "source.log", "target": tmp_path / "target.log"}, entries.append
    )
    assert [entry["t"] for entry in entries] == sorted(entry["t"] for entry in entries)
    assert {entry["flow"] for entry in entries} == {
        f"{role} {what}" for role in ("source", "target") for what in ("journal", "trace log")
    }
    assert {"read", "wrote", "multifd_send_fill"} <= {entry["event"] for entry in entries}
