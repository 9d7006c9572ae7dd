# SPDX-License-Identifier: GPL-2.0-or-later
"""What journals say, in a few words, on both sides of each invariant's line.

A canary is a whole migration that is far over the line. Here an end's journal is only what one invariant
looks at, so that each word matters. The words of a line (see `lines_of`):

  RUN>STOP     a device's arc; with ! a failed one     stop, shut=1    a mark, and its value
  S0 T0 R0 L0  a buffer saved, sent, received, loaded  r10+5, w10+5    5 bytes at 10 read, written
  S3c=20 T0/1  the config state, of 20 bytes; channel  completed       the end (also failed, cancelled)
  b:S0         of device b, not a                      deadline        it gives up; error: it fails
  @30          it is that second                       equal, wrong    what was loaded is what it should be
  reset        a QEMU resets the device
  image=9/x/c  all of the device passed here: size, digest, the config state's digest
  COMPLETED    the end, as a QEMU's events tell it

And of a QEMU's trace log: in0, ld0, end0 (a buffer comes in, is loaded, has been), bufs, conf, cleanup (the
load thread starts, loads the config state, is gone), active (a status, from which on the log is whole).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from mockdev.journal import (
    AnyLine,
    Begin,
    End,
    Failure,
    Image,
    Loaded,
    Mark,
    Read,
    Received,
    Reset,
    Saved,
    Sent,
    State,
    Verified,
    Wrote,
)
from verifier.history.observation import JOURNAL, QMP_LOG, TRACE_LOG, LoadTrace, QmpEvent, Said, StatusTrace
from verifier.invariants.feed import Feed
from verifier.verdict import Report

YES, NO = True, False
_ARC = re.compile(r"(\w+)>(\w+)(!?)")
_BUFFER = re.compile(r"([STRL])(-?\d+)(c?)(?:=(\d+))?(?:/(\d))?")
_PASSED = re.compile(r"([rw])(\d+)\+(\d+)")
_STATES = {
    "RUN": "RUNNING",
    "P2P": "RUNNING_P2P",
    "PRE": "PRE_COPY",
    "PREP2P": "PRE_COPY_P2P",
    "COPY": "STOP_COPY",
    "LOAD": "RESUMING",
}
_LOADS = {
    "in": "vfio_load_state_device_buffer_incoming",
    "ld": "vfio_load_state_device_buffer_load_start",
    "end": "vfio_load_state_device_buffer_load_end",
    "bufs": "vfio_load_bufs_thread_start",
    "conf": "vfio_load_device_config_state_start",
    "cleanup": "vfio_load_cleanup",
}
_CONFIG = {"channels": 2, "idle_timeout_s": 30.0}


def lines_of(role: str, words: str) -> Iterator[AnyLine | QmpEvent]:
    """A journal's lines. A QEMU's begins with the word "qemu"."""
    config = {**_CONFIG, "command": ["qemu"]} if words.startswith("qemu") else _CONFIG
    yield Begin(t=0, role=role, config=config)
    t = 0
    for word in words.split():
        if word[0] == "@":
            t = int(word[1:]) * 1_000_000_000
        elif word != "qemu":
            yield line_of(word, t)
            t += 1_000_000


def line_of(word: str, t: int) -> AnyLine | QmpEvent:
    """One line."""
    device, _, what = word.rpartition(":")
    name = f"0000:00:0{'ab'.index(device or 'a') + 2}.0/vfio"
    if found := _ARC.fullmatch(what):
        old, new = (_STATES.get(word, word) for word in found.groups()[:2])
        return State(t=t, device=name, old=old, new=new, errno=5 if found[3] else 0)
    if found := _PASSED.fullmatch(what):
        kind = Read if found[1] == "r" else Wrote
        return kind(t=t, device=name, offset=int(found[2]), size=int(found[3]))
    if found := _BUFFER.fullmatch(what):
        idx, config, size, channel = int(found[2]), bool(found[3]), int(found[4] or 10), found[5] or "0"
        if found[1] == "S":
            return Saved(t=t, device=name, idx=idx, size=size, config=config)
        if found[1] == "T":
            return Sent(t=t, device=name, idx=idx, size=size, config=config, channel=channel)
        if found[1] == "L":
            return Loaded(t=t, device=name, idx=idx, size=size, config=config, queued_bytes=0)
        return Received(t=t, device=name, idx=idx, size=size, config=config, channel=channel, queued_bytes=0)
    if what.startswith("image"):
        whole, digest, own = (*what.partition("=")[2].split("/"), "", "", "")[:3]
        return Image(t=t, device=name, size=int(whole or 0), digest=digest, config_digest=own)
    if what == "reset":
        return Reset(t=t, device=name)
    if what in ("equal", "wrong"):
        return Verified(t=t, device=name, equal=what == "equal", wrong_at=0)
    if what in ("completed", "failed", "cancelled"):
        return End(t=t, outcome=what, runs=False)
    if what in ("COMPLETED", "FAILED"):
        return QmpEvent(t, "MIGRATION", what.lower())
    if what in ("deadline", "error"):
        return Failure(t=t, message=what, field=what)
    mark, _, value = what.partition("=")
    return Mark(t=t, name=mark, value=int(value or 0))


def trace_of(word: str) -> LoadTrace | StatusTrace:
    """One line of a trace log."""
    if word == "active":
        return StatusTrace(0, "migrate_set_state", word)
    name = word.rstrip("0123456789")
    idx = word.removeprefix(name)
    return LoadTrace(0, _LOADS[name], "0000:00:02.0", int(idx) if idx else None)


def judged(journals: dict[str, str]) -> Report:
    """The report on these journals, read one after the other."""
    feed = Feed()
    for role, words in journals.items():
        for number, line in enumerate(lines_of(role, words)):
            where = QMP_LOG if isinstance(line, QmpEvent) else JOURNAL
            feed.say(Said(role, line, f"{role}.jsonl", number, 1, where))
    return feed.report()


def accused(journals: dict[str, str]) -> set[str]:
    """What they violate."""
    return {violation.id for violation in judged(journals).violations}


# Of one end's journal.
ONE_END: list[tuple[str, str, str, bool]] = [
    ("DS-9", "source", "switchover-start T0", NO),
    ("DS-9", "source", "T0 switchover-start", YES),
    ("DS-9", "source", "T-1 switchover-start T0", NO),
    ("DS-9", "source", "stop T0 switchover-start", YES),
    ("DS-9", "source", "switchover-start T0 switchover-start", NO),
    ("DS-9", "source", "@5 T0 @5 switchover-start", NO),  # at one time: nobody can tell
    ("DS-17", "source", "S0 S1 S2c end-of-stream", NO),
    ("DS-17", "source", "S-1 S0c S-1 end-of-stream", NO),
    ("DS-17", "source", "S1", YES),
    ("DS-17", "source", "S0 S2", YES),
    ("DS-17", "source", "S0 S0", YES),
    ("DS-17", "source", "S0c S1", YES),
    ("DS-17", "source", "S0 end-of-stream", YES),
    ("DS-17", "source", "S0", NO),  # it broke off
    ("DS-17", "source", "S-1 end-of-stream", NO),
    ("DS-18", "target", "switchover-start L0", NO),
    ("DS-18", "target", "L0 switchover-start", YES),
    ("DS-18", "target", "L-1 switchover-start L0", NO),
    ("DS-18", "target", "switchover-start L0 switchover-start", NO),
    ("DS-18", "target", "L0 resume", NO),
    ("DS-13", "target", "L-1 L-1 L0 L1 L2c", NO),
    ("DS-13", "target", "L-1 L-1c", NO),
    ("DS-13", "target", "L1", YES),
    ("DS-13", "target", "L0 L2", YES),
    ("DS-13", "target", "L0 L0", YES),
    ("DS-13", "target", "L0 L0c", YES),
    ("DS-13", "target", "L0 L-1", YES),
    ("DS-13", "target", "L0 L-1c", NO),  # its config state came on the main channel
    ("DS-13", "target", "L0c L1", YES),
    ("DS-13", "target", "L-1c L-1", YES),
    ("DS-14", "target", "R0 L0 R1c L1c", NO),
    ("DS-14", "target", "L0 R0", NO),
    ("DS-14", "target", "L0", YES),
    ("DS-14", "target", "R0 L0 L0", YES),
    ("DS-14", "target", "R0 R1 L0 L2 L1", YES),
    ("DS-14", "target", "R0 L1", YES),
    ("DS-14", "target", "R0 R1 R2", NO),  # it broke off
    ("DS-14", "target", "L-1", NO),
    ("DS-16", "source", "STOP>COPY r0+10 r10+5 r15+0", NO),
    ("DS-16", "source", "r0+10 r10+5", NO),
    ("DS-16", "source", "r1+5", YES),
    ("DS-16", "source", "STOP>COPY r10+5", YES),
    ("DS-16", "source", "STOP>COPY r0+10 r12+1", YES),
    ("DS-16", "source", "STOP>COPY r0+10 r0+10", YES),
    ("DS-16", "source", "RUN>PRE r0+10 PRE>PREP2P PREP2P>COPY r10+5", NO),
    ("DS-16", "source", "RUN>PRE r0+10 PRE>COPY r0+5", YES),  # the same file
    ("DS-16", "source", "STOP>COPY r0+10 COPY>STOP STOP>COPY r0+10", NO),
    ("DS-16", "source", "STOP>COPY r0+10 COPY>STOP STOP>COPY! r0+10", YES),
    ("DS-16", "target", "STOP>LOAD w0+10 w10+5 LOAD>STOP STOP>LOAD w0+10", NO),
    ("DS-16", "target", "STOP>LOAD w0+10 w11+5", YES),
    ("ST-1", "source", "RUN>STOP STOP>COPY COPY>STOP STOP>RUN", NO),
    ("ST-1", "source", "RUN>P2P P2P>STOP STOP>COPY COPY>STOP", NO),
    ("ST-1", "source", "RUN>STOP STOP>P2P", YES),
    ("ST-1", "source", "RUN>P2P RUN>STOP", YES),
    ("ST-1", "source", "RUN>COPY", YES),
    ("ST-1", "source", "RUN>COPY!", NO),  # it was asked for, and refused
    ("ST-1", "source", "RUN>RUN", NO),
    ("ST-1", "source", "RUN>FLYING", YES),
    ("ST-1", "source", "FLYING>RUN", YES),
    ("ST-1", "source", "RUN>ERROR", YES),
    ("ST-1", "source", "RUN>ERROR! ERROR>RUN", NO),
    ("ST-1", "source", "ERROR>STOP", YES),
    ("ST-1", "source", "COPY>RUN", YES),
    ("ST-1", "source", "qemu COPY>RUN RUN>P2P", NO),  # a reset
    ("ST-1", "source", "qemu P2P>RUN RUN>STOP", YES),
    ("ST-1", "source", "qemu RUN>COPY", YES),
    ("ST-2", "source", "RUN>STOP STOP>COPY", NO),
    ("ST-2", "source", "RUN>STOP RUN>STOP", YES),
    ("ST-2", "source", "RUN>STOP! RUN>STOP", NO),
    ("ST-2", "source", "RUN>STOP! STOP>COPY", YES),
    ("ST-2", "source", "RUN>ERROR! ERROR>RUN", NO),
    ("ST-2", "source", "RUN>ERROR! RUN>STOP", YES),
    ("ST-3", "source", "STOP>COPY S-1 S0 r0+1", NO),
    ("ST-3", "source", "S0", YES),
    ("ST-3", "source", "RUN>PRE S-1 r0+1 PRE>PREP2P S-1 r1+1", NO),
    ("ST-3", "source", "RUN>PRE S0", YES),
    ("ST-3", "source", "STOP>COPY COPY>STOP S-1", YES),
    ("ST-3", "source", "STOP>COPY COPY>STOP r0+1", YES),
    ("ST-3", "source", "STOP>COPY COPY>STOP! S0", NO),
    ("ST-3", "source", "RUN>STOP STOP>COPY! S0", YES),
    ("ST-4", "target", "STOP>LOAD L0 w0+1", NO),
    ("ST-4", "target", "L0", YES),
    ("ST-4", "target", "w0+1", YES),
    ("ST-4", "target", "RUN>STOP L0", YES),
    ("ST-4", "target", "STOP>LOAD! L0", YES),
    ("ST-4", "target", "STOP>LOAD LOAD>STOP L0", NO),  # ST-11's
    ("ST-11", "target", "STOP>LOAD L0 LOAD>STOP", NO),
    ("ST-11", "target", "STOP>LOAD LOAD>STOP L0", YES),
    ("ST-11", "target", "STOP>LOAD LOAD>STOP w0+1", YES),
    ("ST-11", "target", "STOP>LOAD LOAD>STOP! L0", NO),
    ("ST-11", "target", "STOP>LOAD LOAD>STOP STOP>P2P L0", YES),
    ("ST-11", "target", "STOP>LOAD LOAD>STOP STOP>LOAD L0", NO),
    ("ST-11", "target", "STOP>LOAD LOAD>STOP STOP>LOAD! L0", YES),
    ("ST-12", "source", "stop STOP>COPY S0 switchover-start", NO),
    ("ST-12", "source", "stop STOP>RUN S0", YES),
    ("ST-12", "source", "stop STOP>RUN switchover-start", YES),
    ("ST-12", "source", "stop P2P>PRE S0", YES),
    ("ST-12", "source", "stop STOP>RUN shut resume", NO),  # it has given up
    ("ST-12", "source", "stop STOP>RUN! S0", NO),
    ("ST-12", "source", "STOP>RUN stop S0", NO),
    ("ST-12", "source", "STOP>RUN S0 switchover-start", NO),
    ("ST-12", "source", "shut STOP>RUN S0", NO),
    ("ST-12", "target", "stop STOP>RUN S0", NO),
    ("ST-6", "source", "STOP>COPY r0+5 r5+0", NO),
    ("ST-6", "source", "RUN>PRE r0+5", NO),
    ("ST-6", "source", "RUN>PRE r0+0", YES),
    ("ST-6", "source", "PRE>PREP2P r0+0", YES),
    ("ST-6", "source", "RUN>PRE PRE>COPY! r0+0", YES),
    ("ST-6", "source", "STOP>COPY COPY>PRE! r0+0", NO),
    ("ST-7", "source", "STOP>COPY r0+5 r5+0 r5+0", NO),
    ("ST-7", "source", "STOP>COPY r0+5 r5+0 r5+1", YES),
    ("ST-7", "source", "STOP>COPY r0+0 COPY>STOP! r0+1", YES),
    ("ST-7", "source", "STOP>COPY r0+0 COPY>STOP STOP>COPY r0+1", NO),
    ("ST-7", "source", "RUN>PRE r0+0 r0+1", NO),  # ST-6's
    ("ST-9", "source", "a:RUN>P2P b:PRE>PREP2P a:P2P>STOP b:PREP2P>COPY", NO),
    ("ST-9", "source", "a:RUN>P2P a:P2P>STOP b:RUN>P2P b:P2P>STOP", YES),
    ("ST-9", "source", "a:RUN>P2P a:P2P>STOP b:PRE>PREP2P b:PREP2P>COPY", YES),
    ("ST-9", "source", "a:PRE>PREP2P a:PREP2P>COPY b:RUN>P2P b:P2P>STOP", YES),
    ("ST-9", "source", "a:RUN>P2P a:P2P>STOP b:RUN>P2P", NO),
    ("ST-9", "source", "a:RUN>P2P a:P2P>STOP b:RUN>P2P b:P2P>STOP!", NO),
    ("ST-9", "source", "a:P2P>STOP! b:RUN>P2P b:P2P>STOP", NO),
    ("ST-9", "source", "a:P2P>STOP a:STOP>P2P b:RUN>P2P b:P2P>STOP", NO),
    ("ST-9", "source", "a:P2P>STOP b:STOP>P2P b:P2P>STOP", NO),
    ("ST-9", "source", "a:P2P>STOP b:RUN>P2P b:P2P>RUN a:STOP>P2P b:RUN>P2P b:P2P>STOP", NO),
    ("ST-9", "source", "a:P2P>STOP a:RUN>P2P a:P2P>STOP", NO),
    ("ST-9", "source", "qemu a:P2P>STOP a:STOP>RUN b:RUN>P2P a:RUN>P2P b:P2P>STOP", NO),
    ("ST-9", "source", "a:RUN>P2P a:P2P>STOP! b:P2P>STOP a:RUN>P2P a:P2P>STOP", NO),
    ("ST-9", "source", "qemu a:P2P>STOP a:STOP>RUN b:P2P>STOP a:RUN>P2P a:P2P>STOP", NO),  # it was reset
    ("ST-13", "target", "qemu LOAD>STOP STOP>P2P P2P>RUN reset COMPLETED", NO),  # the guest's
    ("ST-13", "target", "qemu LOAD>STOP STOP>P2P P2P>RUN! reset P2P>RUN COMPLETED", YES),
    ("ST-13", "target", "qemu LOAD>STOP STOP>P2P P2P>RUN RUN>RUN! reset COMPLETED", YES),
    ("ST-13", "target", "qemu LOAD>STOP reset STOP>RUN COMPLETED", YES),
    ("ST-13", "target", "qemu LOAD>STOP reset STOP>RUN FAILED", NO),
    ("ST-13", "target", "qemu LOAD>STOP! reset LOAD>RUN COMPLETED", NO),  # nothing was loaded
    ("ST-13", "target", "qemu reset STOP>LOAD LOAD>STOP STOP>P2P P2P>RUN COMPLETED", NO),
    ("ST-13", "target", "qemu LOAD>STOP b:P2P>RUN! b:reset STOP>P2P P2P>RUN COMPLETED", NO),
    ("ST-13", "source", "qemu LOAD>STOP STOP>P2P P2P>RUN! reset COMPLETED", NO),
    ("ST-9", "target", "a:RUN>P2P a:P2P>STOP b:RUN>P2P b:P2P>STOP", NO),
    ("LV-1", "target", "switchover-start R0 R1c deadline", YES),
    ("LV-1", "target", "switchover-start R-1 L-1 R0 L0 R1c deadline", YES),
    ("LV-1", "target", "switchover-start R0 L0 R1c L1c deadline", NO),
    ("LV-1", "target", "switchover-start R0 b:R0 b:R1 b:R3c deadline", NO),  # b's third did not come
    ("LV-1", "target", "switchover-start R0c L0c b:R0c deadline", YES),
    ("LV-1", "target", "R0 R1c deadline", NO),
    ("LV-1", "target", "resume R0 R1c deadline", NO),
    ("LV-1", "target", "switchover-start R0 R2c deadline", NO),
    ("LV-1", "target", "switchover-start R0 R1c error", NO),
    ("LV-1", "target", "switchover-start R0 R1c deadline error", NO),
    ("LV-1", "target", "switchover-start fault R0 R1c deadline", NO),
    ("LV-1", "target", "@0 switchover-start R0 @5 R1c @65 deadline", YES),
    ("LV-1", "target", "@0 switchover-start R0 @5 R1c @66 deadline", NO),  # the machine stood still
    ("LV-1", "source", "switchover-start R0 R1c deadline", NO),
    ("LV-2", "source", "S0 S1 S2 T0/0 T1/1 T2/0", NO),
    ("LV-2", "source", "S0 S1 S2 T1/0 T2/1", YES),
    ("LV-2", "source", "S0 S1 S2 T1/0 T2/0", NO),  # the other channel may hold it
    ("LV-2", "source", "S0 S1 S2 T0/0 T2/1", NO),  # as the first may
    ("LV-2", "source", "S0 S1 S2 S3 T2/0 T0/0 T3/1", YES),
    ("LV-2", "source", "S-1 S0 S1 T0/0 T1/1", NO),
    ("LV-2", "source", "S0 b:S0 b:S1 b:T0/0 b:T1/1", YES),
    ("LV-3", "target", "L0c end-of-stream deadline", YES),
    ("LV-3", "target", "L0 image end-of-stream deadline", YES),
    ("LV-3", "target", "L0c end-of-stream shut=1 deadline", YES),
    ("LV-3", "target", "L0c end-of-stream shut deadline", NO),
    ("LV-3", "target", "L0c end-of-stream error", NO),
    ("LV-3", "target", "L0 end-of-stream deadline", NO),
    ("LV-3", "target", "L0c b:L0 end-of-stream deadline", NO),
    ("LV-3", "target", "L0c resume deadline", NO),
    ("LV-3", "target", "end-of-stream deadline", NO),
    ("LV-3", "target", "fault L0c end-of-stream deadline", NO),
    ("LV-3", "target", "L0c @5 end-of-stream @65 deadline", YES),
    ("LV-3", "target", "L0c @5 end-of-stream @66 deadline", NO),
    ("LV-3", "target", "end-of-stream @5 L0c @65 deadline", YES),
    ("LV-3", "source", "L0c end-of-stream deadline", NO),
    ("LV-4", "source", "shut deadline", YES),
    ("LV-4", "source", "shut=1 deadline", NO),
    ("LV-4", "source", "stop deadline", NO),
    ("LV-4", "source", "deadline shut", NO),
    ("LV-4", "source", "shut error", NO),
    ("LV-4", "source", "fault shut deadline", NO),
    ("LV-4", "source", "shut @60 deadline", YES),
    ("LV-4", "source", "shut @61 deadline", NO),
    ("LV-4", "source", "shut @50 shut @61 deadline", NO),
    ("LV-4", "target", "shut deadline", NO),
]

# Of both, with how the two end: what is only said of a migration that completed, or of two ends together.
BOTH: list[tuple[str, str, str, bool]] = [
    ("DS-9", "T0", "switchover-start", NO),  # the target's own
    ("DS-14", "completed", "R0 completed", YES),
    ("DS-14", "completed", "R0 R0 L0 completed", YES),
    ("DS-14", "completed", "R-1 completed", NO),
    ("DS-14", "failed", "R0 failed", NO),
    ("DS-14", "completed", "R0 failed", NO),
    ("DS-18", "switchover-start", "L0", NO),  # the source's own
    ("ST-5", "completed", "STOP>LOAD completed", YES),
    ("ST-5", "completed", "STOP>LOAD LOAD>STOP! completed", YES),
    ("ST-5", "completed", "STOP>LOAD LOAD>STOP completed", NO),
    ("ST-5", "completed", "STOP>LOAD LOAD>ERROR! completed", YES),
    ("ST-5", "completed", "STOP>LOAD LOAD>STOP STOP>ERROR! completed", YES),
    ("ST-5", "completed", "STOP>LOAD! completed", NO),
    ("ST-5", "failed", "STOP>LOAD failed", NO),
    ("ST-8", "r0+5 COMPLETED", "COMPLETED", YES),
    ("ST-8", "r0+5 r5+0 COMPLETED", "COMPLETED", NO),
    ("ST-8", "r0+5 FAILED", "FAILED", NO),
    ("ST-10", "completed", "STOP>LOAD b:STOP>LOAD STOP>P2P b:STOP>P2P P2P>RUN b:P2P>RUN completed", NO),
    ("ST-10", "completed", "STOP>LOAD b:STOP>LOAD STOP>P2P P2P>RUN b:STOP>P2P completed", YES),
    ("ST-10", "failed", "STOP>LOAD b:STOP>LOAD STOP>P2P P2P>RUN b:STOP>P2P failed", NO),
    ("ST-10", "completed", "STOP>LOAD b:STOP>LOAD STOP>P2P P2P>RUN! b:STOP>P2P completed", NO),
    ("ST-10", "completed", "STOP>LOAD b:STOP>LOAD! STOP>P2P P2P>RUN b:STOP>P2P completed", NO),
    ("ST-10", "completed", "STOP>LOAD b:STOP>LOAD STOP>P2P b:STOP>RUN P2P>RUN b:RUN>P2P completed", NO),
    ("ST-10", "STOP>LOAD b:STOP>LOAD STOP>P2P P2P>RUN b:STOP>P2P completed", "completed", NO),
    ("EQ-3", "S0=10 T0=10", "R0=10 L0=10", NO),
    ("EQ-3", "S0=10", "R0=11", YES),
    ("EQ-3", "S0=10 T0=10", "L0=11", YES),
    ("EQ-3", "S0=10 T0=11", "", YES),
    ("EQ-3", "S0=10 S1=11", "R1=11 R0=10", NO),
    ("EQ-3", "S-1=10 S-1=11", "", NO),
    ("EQ-4", "S-1=3 S0=10 S1c=5 completed", "L-1=3 L0=10 L1c=5 completed", NO),
    ("EQ-4", "S0=10 S1=5 S2c=5 completed", "L0=10 L1=4 L2c=5 completed", YES),
    ("EQ-4", "S0=10 S1c=5 completed", "L0=10 L1c=4 completed", YES),
    ("EQ-4", "S0=10 completed", "failed", NO),
    ("EQ-4", "qemu r0+10 r10+0 COMPLETED", "qemu w0+4 w4+6 COMPLETED", NO),
    ("EQ-4", "qemu r0+10 r10+0 COMPLETED", "qemu w0+4 w4+5 COMPLETED", YES),
    ("EQ-4", "qemu r0+10 r10+0 COMPLETED", "L0=10 L1c=7 completed", NO),  # its config state is its own
    ("EQ-4", "S0=10 S1c=7 completed", "qemu w0+10 COMPLETED", NO),
    ("EQ-4", "S0=10 S1c=7 completed", "qemu w0+9 COMPLETED", YES),
    ("EQ-1", "image=9/x completed", "image=9/x completed", NO),
    ("EQ-1", "image=9/x completed", "image=9/y completed", YES),
    ("EQ-1", "image=9/x completed", "image=8/y completed", YES),
    ("EQ-1", "image=9/x failed", "image=8/y failed", NO),  # it broke off
    ("EQ-1", "image=9/x failed", "image=9/y failed", YES),
    ("EQ-1", "image=9/x", "image=9/y", YES),
    ("EQ-1", "image=9/y image=9/x completed", "image=9/x completed", NO),  # begun anew
    ("EQ-1", "image=9/x/c completed", "image=9/x/d completed", YES),
    ("EQ-1", "image=9/x/c failed", "image=8/y/d failed", NO),
    ("EQ-1", "image=9/x/c completed", "image=9/x completed", NO),
    ("EQ-1", "qemu image=9/x/c COMPLETED", "qemu image=9/x/d COMPLETED", NO),  # a QEMU's own
    ("EQ-1", "qemu image=9/x/c COMPLETED", "qemu image=9/y/c COMPLETED", YES),
    ("EQ-1", "image=9/x b:image=9/y completed", "image=9/x b:image=9/y completed", NO),
    ("EQ-2", "completed", "equal completed", NO),
    ("EQ-2", "completed", "wrong completed", YES),
    ("EQ-2", "failed", "wrong failed", YES),
    ("EQ-2", "COMPLETED", "qemu equal COMPLETED", NO),
    ("EQ-2", "COMPLETED", "qemu wrong COMPLETED", YES),
    ("EQ-2", "FAILED", "qemu wrong FAILED", NO),
    ("EQ-2", "", "qemu wrong", NO),
    ("EN-6", "failed", "completed", YES),
    ("EN-6", "completed", "completed", NO),
    ("EN-6", "completed", "failed", NO),
    ("EN-6", "cancelled", "completed", NO),
    ("EN-6", "fault failed", "completed", NO),
]  # fmt: skip


@pytest.mark.parametrize(("name", "role", "words", "guilty"), ONE_END)
def test_of_one_end(name: str, role: str, words: str, guilty: bool) -> None:
    assert (name in accused({role: words})) == guilty


@pytest.mark.parametrize(("name", "source", "target", "guilty"), BOTH)
def test_of_both_ends(name: str, source: str, target: str, guilty: bool) -> None:
    assert (name in accused({"source": source, "target": target})) == guilty
    assert (name in accused({"target": target, "source": source})) == guilty


@pytest.mark.parametrize(
    ("name", "role", "nothing", "something"),
    [
        ("DS-9", "source", "switchover-start", "T0"),
        ("DS-17", "source", "S-1", "S0"),
        ("DS-18", "target", "switchover-start L-1", "L0"),
        ("DS-16", "source", "STOP>COPY", "STOP>COPY r0+0"),
        ("BC-7", "target", "L0", "L0c"),
        ("EQ-3", "source", "S0", "S0 T0"),
        ("ST-6", "source", "STOP>COPY r0+5", "STOP>COPY r0+0"),
        ("ST-7", "source", "RUN>PRE r0+0", "STOP>COPY r0+0"),
        ("ST-8", "source", "STOP>COPY", "r0+5"),
        ("ST-9", "source", "RUN>P2P", "RUN>P2P P2P>STOP"),
        ("ST-10", "target", "STOP>LOAD STOP>P2P", "P2P>RUN"),
        ("ST-11", "target", "STOP>LOAD", "STOP>LOAD LOAD>STOP"),
        ("ST-12", "source", "S0 STOP>RUN", "stop S0"),
        ("LV-1", "target", "R0c", "R0c switchover-start"),
        ("LV-1", "target", "switchover-start R0", "switchover-start R0 R1c"),
        ("LV-1", "target", "switchover-start R0c fault", "switchover-start R0c"),
        ("LV-2", "source", "S0 S1 T0/0 T1/0", "S0 S1 T0/0 T1/1"),
        ("LV-3", "target", "L0c", "L0c end-of-stream"),
        ("LV-3", "target", "L0 end-of-stream", "L0c end-of-stream"),
        ("LV-3", "target", "L0c end-of-stream fault", "L0c end-of-stream"),
        ("LV-4", "source", "shut=1", "shut"),
        ("LV-4", "source", "shut fault", "shut"),
        ("OC-1", "source", "qemu", "completed"),
        ("EN-6", "source", "completed", ""),
    ],
)
def test_what_is_not_spoken_of_is_not_said_to_hold(
    name: str, role: str, nothing: str, something: str
) -> None:
    assert name not in judged({role: nothing}).exercised.invariants
    assert not something or name in judged({role: something}).exercised.invariants


@pytest.mark.parametrize(
    ("name", "words", "guilty"),
    [
        ("TR-1", "bufs ld0 end0 ld1 end1 conf", NO),
        ("TR-1", "bufs in7 in1 in0 ld0 end0", NO),
        ("TR-1", "bufs ld1 end1", YES),
        ("TR-1", "bufs ld0 end0 ld0 end0", YES),
        ("TR-1", "bufs ld0 end0 ld2 end2", YES),
        ("TR-1", "bufs ld0 ld1", YES),
        ("TR-1", "bufs ld0 conf", YES),
        ("TR-1", "bufs ld0 end0 conf ld1", YES),
        ("TR-1", "bufs end0", YES),
        ("TR-1", "bufs ld0 end1", YES),
        ("TR-1", "bufs ld0 end0 end0", YES),
        ("TR-1", "conf ld5 end5 ld9", NO),  # heard from the middle on
        ("TR-1", "bufs ld0 end0 conf cleanup ld5", NO),
        ("TR-1", "bufs ld0 end0 conf cleanup bufs ld0 end0", NO),
        ("TR-1", "bufs ld0 end0 cleanup bufs ld1", YES),
        ("TR-2", "active in1 in0 ld0 ld1 in2 ld2", NO),
        ("TR-2", "active ld0", YES),
        ("TR-2", "active in0 ld0 ld0", YES),
        ("TR-2", "active in0 in0", YES),
        ("TR-2", "active in0 ld0 in0", YES),
        ("TR-2", "active in0 ld0 in1 in0", YES),
        ("TR-2", "in0 in0 ld1", NO),  # heard from the middle on
        ("TR-2", "active in0 ld0 cleanup in0 ld0", NO),
        ("TR-2", "active in0 cleanup in0 ld0", NO),
    ],
)
def test_of_a_trace_log(name: str, words: str, guilty: bool) -> None:
    feed = Feed()
    for number, word in enumerate(words.split()):
        feed.say(Said("target", trace_of(word), "target.log", number, 1, TRACE_LOG))
    report = feed.report()
    assert (name in {violation.id for violation in report.violations}) == guilty
    judged_at_all = "ld" in words and ("bufs" in words or "active" in words)
    assert (name in report.exercised.invariants) == (judged_at_all or guilty)


@pytest.mark.parametrize(
    ("name", "role", "words", "lines"),
    [
        ("DS-17", "source", "S1", [1]),
        ("DS-17", "source", "S0 S2", [1, 2]),
        ("DS-13", "target", "L1", [1]),
        ("DS-13", "target", "L-1 L0 L2", [2, 3]),
        ("DS-16", "source", "r1+5", [1]),
        ("DS-16", "source", "STOP>COPY r0+5 r7+1", [2, 3]),
        ("ST-1", "source", "RUN>STOP STOP>COPY STOP>P2P", [3, 1]),
        ("ST-12", "source", "stop STOP>RUN STOP>RUN S0", [1, 2, 4]),
        ("ST-7", "source", "STOP>COPY r0+0 r0+0 r0+1", [2, 4]),
    ],
)
def test_the_lines_that_show_it_are_named(name: str, role: str, words: str, lines: list[int]) -> None:
    found = next(v for v in judged({role: words}).violations if v.id == name)
    assert [witness.offset for witness in found.witnesses] == lines  # the number of the line, here


@pytest.mark.parametrize(
    ("name", "source", "target", "unsure"),
    [
        ("EQ-1", "image=9/x completed", "completed", YES),
        ("EQ-1", "image=9/x completed", "image=9/x completed", NO),
        ("EQ-1", "image=9/x failed", "image=8/y failed", YES),
        ("EQ-2", "", "qemu wrong", YES),
        ("EQ-2", "COMPLETED", "qemu equal COMPLETED", NO),
        ("EQ-2", "FAILED", "qemu wrong FAILED", NO),
        ("ST-5", "completed", "STOP>LOAD", YES),
        ("ST-5", "completed", "STOP>LOAD LOAD>STOP completed", NO),
        ("LV-1", "", "switchover-start R0 R1c @90 deadline", YES),
        ("LV-1", "", "switchover-start R0 L0 R1c L1c @90 deadline", NO),
        ("LV-3", "", "L0c end-of-stream @90 deadline", YES),
        ("LV-4", "shut @90 deadline", "", YES),
    ],
)
def test_what_cannot_be_told_is_unknown(name: str, source: str, target: str, unsure: bool) -> None:
    report = judged({"source": source, "target": target})
    assert (name in {unknown.id for unknown in report.unknown}) == unsure
    assert name not in {violation.id for violation in report.violations}
