# SPDX-License-Identifier: GPL-2.0-or-later
"""The good migration as two QEMUs with supervisors would leave it, and the canaries of what only they say.

`lend` takes an untouched script. Its logs are in the words of QEMU 10.0's trace events.
"""

from __future__ import annotations

import json
from typing import Any

from mockdev.journal import (
    AnyLine,
    Begin,
    Connected,
    End,
    Image,
    Loaded,
    Mark,
    Read,
    Received,
    Reset,
    Saved,
    Sent,
    State,
    Wrote,
)
from mockdev.wire.structs import MULTIFD_RAM
from tests.canaries.edits import Edit
from tests.canaries.script import BUFFERS, DEVICES, START_NS, STEP_NS, Script

NAMES = ("VFIO_FD10001", "VFIO_FD10002")
_BUFFERLESS = (Saved, Sent, Received, Loaded, Mark, Connected)


def lend(s: Script, *roles: str) -> None:
    """Put a QEMU with its supervisor at these ends; at both when none is named."""
    roles = roles or ("source", "target")
    for role in roles:
        s.lines[role] = _supervised(s.lines[role])
        s.logs[role] = _log(s, role)
        s.events[role] = _events(s, role)
    s.record = {
        "seed": 7,
        "arguments": {},
        "guest_ram": {"equal": True, "pages": 6},
        "pci": {"equal": True, "devices": 2},
        "outcome": {
            "outcome": "completed",
            "source": {"outcome": "completed", "runs": False, "error": "", "kind": "mock"},
            "target": {"outcome": "completed", "runs": True, "error": "", "kind": "mock"},
        },
    }
    for role in roles:
        ended(s, role, kind="qemu", version="10.0.2")
    ended(s, "source", downtime_ms=12.5)


def _supervised(lines: list[AnyLine]) -> list[AnyLine]:
    """Reads and writes where the endpoint told of buffers; an end that knows nothing of the VM."""
    out: list[AnyLine] = []
    passed = dict.fromkeys(DEVICES, 0)
    saves = any(isinstance(line, Saved) for line in lines)
    for line in lines:
        if isinstance(line, Saved | Loaded) and not line.config:
            kind = Read if isinstance(line, Saved) else Wrote
            out.append(kind(t=line.t, device=line.device, offset=passed[line.device], size=line.size))
            passed[line.device] += line.size
        elif isinstance(line, Begin):
            out.append(Begin(t=line.t, role=line.role, config={"command": ["qemu-system-x86_64"]}))
        elif isinstance(line, End):
            out.append(End(t=line.t, outcome="completed", runs=False))
        elif not isinstance(line, _BUFFERLESS):
            if isinstance(line, Image) and saves:
                out.append(Read(t=line.t, device=line.device, offset=passed[line.device], size=0))
            out.append(line)
    return out


def _events(s: Script, role: str) -> list[str]:
    """What one QEMU sends over QMP: the target's VM was kept stopped, and is then resumed."""
    switch, last = s.find("switchover").time_ns - STEP_NS, s.now_ns + STEP_NS
    told = [(START_NS, "MIGRATION", "setup"), (START_NS, "MIGRATION", "active")]
    if role == "source":
        told += [(START_NS, "MIGRATION_PASS", ""), (switch, "STOP", ""), (switch, "MIGRATION", "device")]
    told.append((last, "MIGRATION", "completed"))
    if role == "target":
        told.append((last, "RESUME", ""))
    told.append((last + STEP_NS, "SHUTDOWN", ""))
    return [qmp(ns, event, status) for ns, event, status in told]


def qmp(time_ns: int, event: str, status: str = "") -> str:
    """An event of QMP."""
    time = {"seconds": time_ns // 10**9, "microseconds": time_ns % 10**9 // 1000}
    data = {"data": {"status": status}} if status else {}
    return json.dumps({"timestamp": time, "event": event} | data)


def _log(s: Script, role: str) -> list[str]:
    """What one QEMU traces of it."""
    state = "migrate_set_state new state"
    events: list[tuple[int, str]] = [(START_NS, f"{state} setup"), (START_NS, f"{state} active")]
    verb, fill = ("send", "multifd_send_fill") if role == "source" else ("recv", "multifd_recv_unfill")
    counts = dict.fromkeys(("0", "1"), 0)
    for piece in s.pieces:
        if piece.where not in counts:
            continue
        label = piece.label
        if label.startswith("init"):
            events.append((piece.time_ns, f"multifd_{verb}_thread_start {piece.where}"))
        elif label.startswith(("sync", "ram")):
            head = MULTIFD_RAM.unpack(piece.data)
            text = f"channel {piece.where} packet_num {head.packet_num} flags {head.flags:#x} "
            events.append((piece.time_ns, f"{fill} {text}next packet size {head.next_packet_size}"))
            counts[piece.where] += 1
        elif role == "target":
            counts[piece.where] += 1
            events += _arrival(label, piece.time_ns)
    last = s.now_ns
    for channel, count in counts.items():
        events.append((last, f"multifd_{verb}_thread_end channel {channel} packets {count}"))
    if role == "source":
        switch = s.find("switchover").time_ns - STEP_NS
        stopped = "running 0 reason finish-migrate device state STOP"
        stops = [(switch, f"vfio_vmstate_change  ({name}) {stopped}") for name in NAMES]
        events += [*stops, (switch, f"{state} device")]
        events.sort(key=lambda event: event[0])
    else:
        runs = "running 1 reason running device state RUNNING"
        events += [(last, f"vfio_vmstate_change  ({name}) {runs}") for name in NAMES]
    events.append((last + STEP_NS, f"{state} completed"))
    return [f"4711@{ns // 10**9}.{ns % 10**9 // 1000:06}:{text} " for ns, text in events]


def _arrival(label: str, time_ns: int) -> list[tuple[int, str]]:
    """A buffer comes in and is loaded at once; the last one is the config state."""
    device, idx = (int(part) for part in label.removeprefix("vf").split("."))
    name, stem = f"({NAMES[device]})", "vfio_load_state_device_buffer"
    texts = [f"{stem}_incoming  {name} idx {idx}"]
    if not idx:
        texts.append(f"vfio_load_bufs_thread_start  {name}")
    if idx < BUFFERS[device]:
        texts += [f"{stem}_load_start  {name} idx {idx}", f"{stem}_load_end  {name} idx {idx}"]
    else:
        texts += [
            f"vfio_load_device_config_state_start  {name}",
            f"vfio_load_device_config_state_end  {name}",
        ]
    return [(time_ns, text) for text in texts]


# --- edits -----------------------------------------------------------------------------------------


def line_of(s: Script, role: str, text: str) -> int:
    """Where in a log the first line is that holds the text."""
    return next(number for number, line in enumerate(s.logs[role]) if text in line)


def retold(s: Script, role: str, text: str, new: str) -> None:
    """Change the first line of a log that holds the text."""
    number = line_of(s, role, text)
    s.logs[role][number] = s.logs[role][number].replace(text, new)


def ended(s: Script, role: str, **changes: Any) -> None:
    """Change what the record says of an end."""
    s.record["outcome"][role].update(changes)


def left_resuming(s: Script) -> None:
    lend(s)
    arcs = [line for line in s.lines["target"] if isinstance(line, State) and line.device == DEVICES[1]]
    for line in arcs[arcs.index(next(a for a in arcs if a.old == "RESUMING")) :]:
        s.lines["target"].remove(line)


def reset_after_load(s: Script) -> None:
    """As QEMU does when the device fails to run."""
    lend(s)
    lines = s.lines["target"]
    runs = next(
        line
        for line in lines
        if isinstance(line, State) and (line.device, line.new) == (DEVICES[1], "RUNNING")
    )
    failed = State(t=runs.t, device=runs.device, old=runs.old, new=runs.new, errno=5)
    at = lines.index(runs)
    lines[at:at] = [failed, Reset(t=runs.t, device=runs.device)]


def written_with_gap(s: Script) -> None:
    lend(s)
    s.edit("target", Wrote, where={"device": DEVICES[0], "offset": 48}, offset=49, size=39)


def read_less(s: Script) -> None:
    """Both ends agree, and the capture has more: the last buffer of the second device came from nowhere."""
    lend(s)
    for role, kind in (("source", Read), ("target", Wrote)):
        s.edit(role, kind, where={"device": DEVICES[1], "offset": 40}, size=39)
    s.edit("source", Read, where={"device": DEVICES[1], "size": 0}, offset=79)


def ram_differs(s: Script) -> None:
    lend(s)
    s.record["guest_ram"] = {"equal": False, "pages": 6, "difference": "1 page from 0x1000 on"}


def pci_differs(s: Script) -> None:
    lend(s)
    s.record["pci"] = {"equal": False, "devices": 2, "difference": f"{DEVICES[0]}: msix"}


def loads_swapped(s: Script) -> None:
    lend(s)
    place = f"({NAMES[0]}) idx"
    for step in ("load_start", "load_end"):
        retold(s, "target", f"{step}  {place} 0", f"{step}  {place} X")
        retold(s, "target", f"{step}  {place} 1", f"{step}  {place} 0")
        retold(s, "target", f"{step}  {place} X", f"{step}  {place} 1")
    del s.logs["target"][line_of(s, "target", f"incoming  {place} 1")]
    number = line_of(s, "target", f"incoming  {place} 0")
    s.logs["target"].insert(number, s.logs["target"][number].replace("idx 0", "idx 1"))


def loaded_before_it_came(s: Script) -> None:
    lend(s)
    del s.logs["target"][line_of(s, "target", f"incoming  ({NAMES[1]}) idx 1")]


def other_packet(s: Script) -> None:
    lend(s)
    retold(s, "source", "packet_num 3 flags 0x0", "packet_num 3 flags 0x2")


def miscounted(s: Script) -> None:
    lend(s)
    number = line_of(s, "target", "thread_end channel 1")
    s.logs["target"][number] = s.logs["target"][number].rpartition(" packets")[0] + " packets 99 "


LENT: dict[str, Edit] = {
    "ST-5": left_resuming,
    "ST-13": reset_after_load,
    "DS-16": written_with_gap,
    "EQ-6": read_less,
    "EQ-7": ram_differs,
    "EQ-8": pci_differs,
    "TR-1": loads_swapped,
    "TR-2": loaded_before_it_came,
    "TR-3": other_packet,
    "TR-4": miscounted,
}
