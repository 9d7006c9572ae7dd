# SPDX-License-Identifier: GPL-2.0-or-later
"""Canaries of what the ends tell of themselves: how they were set up, how they ended, when they gave up."""

from __future__ import annotations

import msgspec

from mockdev.journal import Begin, End, Failure, Image, Loaded, Mark, Read, Sent, State
from tests.canaries.edits import Edit, silent
from tests.canaries.lent import ended, lend, qmp, retold
from tests.canaries.script import CONFIGURED, DEVICES, STEP_NS, Script

_SECOND_NS = 1_000 * STEP_NS


def configured(s: Script, *roles: str, **changes: object) -> None:
    """Set these ends up otherwise."""
    for role in roles:
        s.edit(role, Begin, config=CONFIGURED | changes)


def another_channel(s: Script) -> None:
    configured(s, "source", "target", channels=3)


def late_channel(s: Script) -> None:
    silent(s)
    late = [s.find("init1"), s.find("sync1.0")]
    for piece in late:
        s.pieces.remove(piece)
    at = s.pieces.index(s.find("ram.start")) + 1
    s.pieces[at:at] = late
    for piece in s.pieces[at:]:
        piece.time_ns += 2 * _SECOND_NS
    s.now_ns += 2 * _SECOND_NS


def other_ram(s: Script) -> None:
    configured(s, "target", ram_bytes=1 << 20)


def zero_pages(s: Script) -> None:
    configured(s, "source", zero_pages="legacy")


def not_over_multifd(s: Script) -> None:
    configured(s, "source", "target", transfer="main")


def shut_lies(s: Script) -> None:
    s.patch("shut", -1, b"\1")


def closed_early(s: Script) -> None:
    s.closed_ns = {"0": s.find("shut").time_ns}
    s.find("shut").time_ns += 2 * _SECOND_NS
    s.now_ns += 2 * _SECOND_NS


def source_alone_fails(s: Script) -> None:
    s.edit("source", End, outcome="failed")


# --- sessions --------------------------------------------------------------------------------------


def of_device(s: Script, role: str, kind: type, device: int) -> list[int]:
    """Where in a journal the lines of that kind about a device are."""
    lines = s.lines[role]
    return [
        i
        for i, line in enumerate(lines)
        if isinstance(line, kind) and getattr(line, "device", "") == DEVICES[device]
    ]


def ends_before_the_stop(s: Script) -> None:
    lend(s)
    lines, first = s.lines["source"], of_device(s, "source", Read, 0)[0]
    lines.insert(first + 1, Read(t=lines[first].t, device=DEVICES[0], offset=48, size=0))


def more_after_the_end(s: Script) -> None:
    lend(s)
    lines, at = s.lines["source"], of_device(s, "source", Read, 1)[1]
    lines.insert(at, Read(t=lines[at].t, device=DEVICES[1], offset=40, size=0))


def not_read_to_the_end(s: Script) -> None:
    lend(s)
    del s.lines["source"][of_device(s, "source", Read, 1)[-1]]


def arc_at(s: Script, role: str, device: int, old: str, new: str) -> int:
    """Where in a journal an arc is."""
    lines = s.lines[role]
    arc = (DEVICES[device], old, new)
    return next(i for i, x in enumerate(lines) if isinstance(x, State) and (x.device, x.old, x.new) == arc)


def move(s: Script, role: str, start: int, to: int) -> None:
    """Take a line out of a journal and put it where, before that, the line `to` stands."""
    lines = s.lines[role]
    line = lines[start]
    lines.insert(to, line)
    del lines[start + (to <= start)]


def stopped_too_soon(s: Script) -> None:
    quiet = arc_at(s, "source", 1, "RUNNING", "RUNNING_P2P")
    move(s, "source", quiet, arc_at(s, "source", 0, "PRE_COPY_P2P", "STOP_COPY") + 1)


def runs_too_soon(s: Script) -> None:
    run = arc_at(s, "target", 0, "RUNNING_P2P", "RUNNING")
    move(s, "target", run, arc_at(s, "target", 1, "STOP", "RUNNING_P2P"))


def loaded_too_late(s: Script) -> None:
    last = of_device(s, "target", Loaded, 1)[-1]
    move(s, "target", last, arc_at(s, "target", 1, "RESUMING", "STOP") + 1)


# --- statuses --------------------------------------------------------------------------------------


def status_out_of_order(s: Script) -> None:
    lend(s)
    retold(s, "source", "new state device", "new state cancelled")


def runs_again(s: Script) -> None:
    lines = s.lines["source"]
    at, quiet = next(
        (i, line)
        for i, line in enumerate(lines)
        if isinstance(line, State) and (line.old, line.new) == ("RUNNING", "RUNNING_P2P")
    )
    back = msgspec.structs.replace(quiet, old="RUNNING_P2P", new="RUNNING")
    lines[at + 1 : at + 1] = [back, quiet]


def mark_at(s: Script, role: str, name: str) -> int:
    """Where in a journal a mark is."""
    return next(i for i, x in enumerate(s.lines[role]) if isinstance(x, Mark) and x.name == name)


def ack_late(s: Script) -> None:
    ack = mark_at(s, "source", "switchover-ack")
    move(s, "source", ack, mark_at(s, "source", "switchover-start") + 1)


def run_state(s: Script) -> None:
    s.replace("globalstate", b"running", b"runnink")


def event_at(s: Script, role: str, text: str) -> int:
    """Where in a QMP log the first event is that holds the text."""
    return next(i for i, line in enumerate(s.events[role]) if text in line)


def stopped_late(s: Script) -> None:
    lend(s)
    events = s.events["source"]
    stop = events.pop(event_at(s, "source", '"STOP"'))
    events.insert(event_at(s, "source", '"device"') + 1, stop)


def runs_before_the_end(s: Script) -> None:
    resume = mark_at(s, "target", "resume")
    move(s, "target", resume, mark_at(s, "target", "end-of-stream"))


def both_run_for_a_while(s: Script) -> None:
    lend(s)
    for role, end in (("source", 3), ("target", 4)):
        if role == "source":
            s.events[role].insert(-1, qmp(s.now_ns + 2 * STEP_NS, "RESUME"))
        s.events[role][-1] = qmp(s.now_ns + end * _SECOND_NS, "STOP")


def failed_after_all(s: Script) -> None:
    lend(s)
    s.events["target"].append(qmp(s.now_ns + 9 * STEP_NS, "MIGRATION", "failed"))


# --- who gives up ----------------------------------------------------------------------------------


def give_up(s: Script, role: str) -> None:
    """The end says that it waited in vain, and failed."""
    lines = s.lines[role]
    end = lines[-1]
    assert isinstance(end, End)
    lines.insert(-1, Failure(t=end.t, message="nothing moved for 30 s", field="deadline"))
    s.edit(role, End, outcome="failed")


def never_loaded(s: Script) -> None:
    lines = s.lines["target"]
    for kind in (Image, Loaded):
        del lines[of_device(s, "target", kind, 1)[-1]]
    give_up(s, "target")


def never_sent(s: Script) -> None:
    del s.lines["source"][of_device(s, "source", Sent, 1)[0]]


def never_says_so(s: Script) -> None:
    del s.lines["target"][mark_at(s, "target", "shut")]
    give_up(s, "target")


def told_and_gives_up(s: Script) -> None:
    give_up(s, "source")


def hangs(s: Script) -> None:
    lend(s)
    ended(s, "source", outcome="killed", error="nothing has moved for 30 s")


AGREEMENTS: dict[str, Edit] = {
    "CH-2": another_channel,
    "CH-8": late_channel,
    "RS-2": other_ram,
    "MP-14": zero_pages,
    "DS-12": not_over_multifd,
    "RP-8": shut_lies,
    "EN-5": closed_early,
    "EN-6": source_alone_fails,
    "ST-6": ends_before_the_stop,
    "ST-7": more_after_the_end,
    "ST-8": not_read_to_the_end,
    "ST-9": stopped_too_soon,
    "ST-10": runs_too_soon,
    "ST-12": runs_again,
    "ST-11": loaded_too_late,
    "SM-4": status_out_of_order,
    "SM-5": ack_late,
    "SM-7": run_state,
    "SM-9": stopped_late,
    "SM-10": runs_before_the_end,
    "OC-4": both_run_for_a_while,
    "OC-5": failed_after_all,
    "LV-1": never_loaded,
    "LV-2": never_sent,
    "LV-3": never_says_so,
    "LV-4": told_and_gives_up,
    "LV-5": hangs,
}
