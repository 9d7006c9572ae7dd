# SPDX-License-Identifier: GPL-2.0-or-later
"""Rules of the wire and of VFIO migration that no invariant holds a migration to, each with its reason."""

from __future__ import annotations

from typing import NamedTuple


class Unjudged(NamedTuple):
    """A rule. id: its own where it would be one of the catalogue, else what it is about."""

    id: str
    statement: str
    why: str


UNJUDGED = (
    Unjudged(
        "RS-3",
        "Every RAM payload ends with one EOS, its last record.",
        "A payload without it cannot be delimited: what follows is read as records, and RS-4, FR-8 or FR-4 "
        "has it.",
    ),
    Unjudged(
        "RS-9",
        "With per-section flushes there are as many SYNCs on each channel as EOS marks.",
        "It is a part of RS-8.",
    ),
    Unjudged(
        "RS-11",
        "The k-th MULTIFD_FLUSH is written after every channel's k-th SYNC.",
        "A capture shows when bytes leave a socket, not when they were written: a channel whose peer is slow "
        "holds a SYNC back for as long as its buffer takes, with no bound. No end writes down when it wrote "
        "either.",
    ),
    Unjudged(
        "EN-4",
        "After a channel's last SYNC come only device-state packets, and then its end.",
        "RS-12 (no RAM packet), MP-2 (no other kind) and MP-15 (the end on a boundary) say it together.",
    ),
    Unjudged(
        "chunks in turn",
        "A device fills one chunk while the other is read, and a read goes on in the next chunk in order.",
        "Neither a journal nor a QEMU sees chunks; DS-15 and EQ-1 see the records and bytes that they "
        "become.",
    ),
    Unjudged(
        "initial bytes",
        "The initial bytes of PRE_COPY are read before the switchover.",
        "The contract only recommends it, and only switchover-ack makes a source wait for them: SM-5 and "
        "SM-6.",
    ),
    Unjudged(
        "ENOMSG",
        "A read says ENOMSG only in PRE_COPY and PRE_COPY_P2P.",
        "No journal has a line for a read that failed; the other half, an end of state before the stop, is "
        "ST-6.",
    ),
    Unjudged(
        "config after data",
        "A device's config is loaded after all of its data.",
        "DS-13 (mock targets) and TR-1 (a QEMU's trace) say it for multifd; on the main channel the order of "
        "the stream is that of loading, and DS-11 judges it.",
    ),
    Unjudged(
        "wrong errno",
        "A call that VFIO refuses is refused with the errno that the kernel would give.",
        "The device is the project's own; its tests hold it to that. A journal has an errno for arcs only.",
    ),
    Unjudged(
        "dirty pages",
        "What a device writes to guest RAM while it is tracked is reported, and sent again.",
        "No line tells of a device's writes; the comparison of the guest's RAM (EQ-7) sees a page that was "
        "missed.",
    ),
    Unjudged(
        "target's own limits",
        "Names, versions, sizes and parameters are those that the target has.",
        "What a target knows is not on the wire; it refuses, and SHUT, its log or its exit says so. Where a "
        "set-up is known, CH-2, RS-2, MP-14 and DS-12 compare.",
    ),
    Unjudged(
        "guest's fate",
        "The guest does not panic or reset because it was migrated.",
        "A panic or reset (QMP GUEST_PANICKED, RESET) may be the guest's own doing; the events are in the "
        "QMP log.",
    ),
)
