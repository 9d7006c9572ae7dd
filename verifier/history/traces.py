# SPDX-License-Identifier: GPL-2.0-or-later
"""Reads logs of QEMU's trace events, as `-trace ... -D FILE` writes them, one line at a time.

A line is `event_name text`; with `-msg timestamp=on` it begins with `thread@seconds.microseconds:`, or, as
releases after 10.1 have it, with a time in ISO 8601. What lies between (messages, output of others) is
passed over; an event that nothing here knows is kept by its name.

Source: QEMU scripts/tracetool/backend/log.py: generate_h; hw/vfio/trace-events, migration/trace-events
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from verifier.history.logs import whole_lines
from verifier.history.observation import (
    TRACE_LOG,
    LoadTrace,
    OtherTrace,
    PacketTrace,
    Said,
    StatusTrace,
    ThreadTrace,
    Trace,
    VmTrace,
)

LINE_BYTES_MAX = 1 << 16
HEAD_BYTES = 1 << 16  # in which a log must have its first event
_TEXT_MAX = 200

# A message that another thread was printing may stand before an event, on its line.
_FAMILIES = (
    rb"(?:vfio|iommufd|multifd|migrate|migration|savevm|loadvm|source|postcopy|ram|vmstate|qemu|vm|runstate)"
)
_ISO = rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z"
_LINE = re.compile(
    rb"^(?:.*?\d{1,10}@(?P<s>\d{1,12})\.(?P<us>\d{6}):(?P<timed>[a-z]\w*)"
    rb"|(?:qemu-system-\w+: )?(?:(?P<iso>" + _ISO + rb") )?(?P<plain>" + _FAMILIES + rb"_\w+))"
    rb" (?P<text>.*)",
    re.MULTILINE,
)
_PACKET = re.compile(
    r"channel (\d{1,3}) packet_num (\d{1,20}) flags 0x([0-9a-f]{1,8}) next packet size (\d{1,10})$"
)
_THREAD_START = re.compile(r"(\d{1,3})()$")
_THREAD_END = re.compile(r"channel (\d{1,3}) packets (\d{1,20})$")
_DEVICE = re.compile(r"\((.+?)\)(?: idx (\d{1,10}))?$")
_VM = re.compile(r"\((.+?)\) running (\d{1,3}) reason (\S+) device state (\S+)$")
_STATUS = re.compile(r"new state (\S+)$")

Maker = Callable[[int, str, re.Match[str]], Trace]


def _packet(t: int, event: str, found: re.Match[str]) -> Trace:
    return PacketTrace(t, event, int(found[1]), int(found[2]), int(found[3], 16), int(found[4]))


def _thread(t: int, event: str, found: re.Match[str]) -> Trace:
    return ThreadTrace(t, event, int(found[1]), int(found[2]) if found[2] else None)


def _load(t: int, event: str, found: re.Match[str]) -> Trace:
    return LoadTrace(t, event, found[1], int(found[2]) if found[2] else None)


def _status(t: int, event: str, found: re.Match[str]) -> Trace:
    return StatusTrace(t, event, found[1])


def _vm(t: int, event: str, found: re.Match[str]) -> Trace:
    return VmTrace(t, event, found[1], int(found[2]), found[3], found[4])


_KNOWN: dict[str, tuple[re.Pattern[str], Maker]] = {
    "multifd_send_fill": (_PACKET, _packet),
    "multifd_recv_unfill": (_PACKET, _packet),
    "multifd_send_thread_start": (_THREAD_START, _thread),
    "multifd_recv_thread_start": (_THREAD_START, _thread),
    "multifd_send_thread_end": (_THREAD_END, _thread),
    "multifd_recv_thread_end": (_THREAD_END, _thread),
    "migrate_set_state": (_STATUS, _status),
    "vfio_vmstate_change": (_VM, _vm),
    "vfio_vmstate_change_prepare": (_VM, _vm),
    "vfio_load_cleanup": (_DEVICE, _load),
    "vfio_load_bufs_thread_start": (_DEVICE, _load),
    "vfio_load_bufs_thread_end": (_DEVICE, _load),
    "vfio_load_device_config_state_start": (_DEVICE, _load),
    "vfio_load_device_config_state_end": (_DEVICE, _load),
    "vfio_load_state_device_buffer_incoming": (_DEVICE, _load),
    "vfio_load_state_device_buffer_load_start": (_DEVICE, _load),
    "vfio_load_state_device_buffer_load_end": (_DEVICE, _load),
    "vfio_load_state_device_buffer_starved": (_DEVICE, _load),
    "vfio_load_state_device_buffer_start": (_DEVICE, _load),
    "vfio_load_state_device_buffer_end": (_DEVICE, _load),
}
_TARGETS = ("multifd_recv", "vfio_load", "migration_set_incoming", "migration_socket_incoming")
_SOURCES = ("multifd_send", "vfio_save", "migration_set_outgoing", "migration_socket_outgoing")


def is_trace_log(head: bytes) -> bool:
    """Whether a file that begins so has an event of QEMU in it, and is text."""
    return b"\0" not in head and _LINE.search(head) is not None


def read_traces(path: Path, role: str = "") -> Iterator[Said]:
    """The events of a log. role: whose it is; "" finds out from the events, by reading it once more.

    A last line that is cut is none. CaptureError as open_file. No more than one line is in memory.
    """
    reader = TraceReader(path, role)
    for raw, offset in whole_lines(path, LINE_BYTES_MAX):
        said = reader.read(raw, offset)
        if said is not None:
            yield said


class TraceReader:
    """Makes events of a log out of its lines, one after the other. role: as of read_traces."""

    def __init__(self, path: Path, role: str = "") -> None:
        self._path = path
        self._role = role or _role_of(path)
        self._now_ns = 0

    def read(self, raw: bytes, offset: int) -> Said | None:
        """The event in the line that stands at `offset`."""
        trace = _parse(raw, self._now_ns)
        if trace is None:
            return None
        self._now_ns = trace.t
        return Said(self._role, trace, str(self._path), offset, len(raw), TRACE_LOG)


def _role_of(path: Path) -> str:
    """The end that the first event of one end only tells; of none, the target's."""
    for raw, _ in whole_lines(path, LINE_BYTES_MAX):
        trace = _parse(raw, 0)
        if trace is None:
            continue
        if trace.event.startswith(_SOURCES):
            return "source"
        if trace.event.startswith(_TARGETS):
            return "target"
    return "target"


def _parse(raw: bytes, before_ns: int) -> Trace | None:
    found = _LINE.match(raw)
    if found is None:
        return None
    event = (found["timed"] or found["plain"]).decode()
    text = found["text"][:_TEXT_MAX].decode("utf-8", "backslashreplace").strip()
    t = _time(found) or before_ns
    known = _KNOWN.get(event)
    if known is not None:
        pattern, make = known
        parts = pattern.match(text)
        if parts is not None:
            return make(t, event, parts)
    return OtherTrace(t, event, text)


def _time(found: re.Match[bytes]) -> int:
    """Ns since the epoch, 0 when the line does not say."""
    if found["s"] is not None:
        return int(found["s"]) * 1_000_000_000 + int(found["us"]) * 1000
    if found["iso"] is None:
        return 0
    whole, _, fraction = found["iso"][:-1].decode().partition(".")
    try:
        at = datetime.fromisoformat(whole).replace(tzinfo=UTC)
    except ValueError:
        return 0
    return int(at.timestamp()) * 1_000_000_000 + int(fraction.ljust(9, "0"))
