# SPDX-License-Identifier: GPL-2.0-or-later
"""Canaries of FR: the items of the main channel."""

from __future__ import annotations

import struct

from mockdev.wire import writer
from mockdev.wire.structs import (
    Command,
    Tag,
)
from tests.canaries.edits import (
    END,
    Edit,
    be32,
    section,
    silent,
)
from tests.canaries.script import (
    DEVICES,
    MACHINE,
    MAIN,
    Script,
)


def stream_version(s: Script) -> None:
    silent(s)
    s.patch("header", 4, be32(2))


def no_configuration(s: Script) -> None:
    s.patch("configuration", 1, be32(0))
    s.replace("configuration", MACHINE.encode(), b"")


def unknown_subsection(s: Script) -> None:
    name = writer.cstr8("configuration/uuid")
    sub = bytes((Tag.SUBSECTION,)) + name + be32(1) + bytes(range(1, 17))
    s.find("configuration").data += sub + sub


def bad_tag(s: Script) -> None:
    s.patch("vf1.full", 0, b"\x55")


def unbound_part(s: Script) -> None:
    s.after("ram.part", MAIN, section(Tag.SECTION_PART, 77, b"??"))


def second_end(s: Script) -> None:
    s.after("vf1.end", MAIN, section(Tag.SECTION_END, 4, END))


def two_names(s: Script) -> None:
    s.replace("vf1.full", be32(4), be32(9))
    s.patch("vf1.full", -4, be32(9))


def wrong_footer(s: Script) -> None:
    s.patch("vf1.end", -4, be32(99))


def nameless(s: Script) -> None:
    # The empty name is described like any other, so only the name itself is wrong.
    s.after("vf1.start", MAIN, section(Tag.SECTION_FULL, 44, b"xyz", name=""))
    described = [writer.opaque_description("", 0, 3), *(writer.opaque_description(n, 0, 8) for n in DEVICES)]
    s.find("eof").data = writer.end_of_stream([*described, writer.globalstate_description()])


def full_twice(s: Script) -> None:
    s.after("vf1.full", MAIN, s.find("vf1.full").data)
    described = [writer.opaque_description(n, 0, 8) for n in (*DEVICES, DEVICES[1])]
    s.find("eof").data = writer.end_of_stream([*described, writer.globalstate_description()])


def described_shorter(s: Script) -> None:
    s.replace("eof", b'"size": 8', b'"size": 7')


def unknown_command(s: Script) -> None:
    s.after("ping", MAIN, writer.command(Command.OPEN_RETURN_PATH)[:1] + struct.pack(">HH", 12, 0))


def opened_late(s: Script) -> None:
    s.after("vf1.start", MAIN, writer.command(Command.OPEN_RETURN_PATH))


def part_after_end(s: Script) -> None:
    s.after("vf0.end", MAIN, section(Tag.SECTION_PART, 4, END))


def unknown_mark(s: Script) -> None:
    s.replace("vf1.end", END, writer.number64(0xFFFFFFFFEF100099))


def other_version(s: Script) -> None:
    s.patch("vf1.start", -25, be32(2))


def full_among_parts(s: Script) -> None:
    full = s.find("globalstate")
    s.pieces.remove(full)
    s.pieces.insert(s.pieces.index(s.find("ram.part")) + 1, full)
    described = [writer.globalstate_description(), *(writer.opaque_description(n, 0, 8) for n in DEVICES)]
    s.find("eof").data = writer.end_of_stream(described)


MAIN_CHANNEL: dict[str, Edit] = {
    "FR-1": stream_version,
    "FR-2": no_configuration,
    "FR-3": unknown_subsection,
    "FR-4": bad_tag,
    "FR-5": unbound_part,
    "FR-6": second_end,
    "FR-7": two_names,
    "FR-8": wrong_footer,
    "FR-9": nameless,
    "FR-10": full_twice,
    "FR-11": described_shorter,
    "FR-12": unknown_command,
    "FR-13": opened_late,
    "FR-14": part_after_end,
    "FR-15": unknown_mark,
    "FR-16": other_version,
    "FR-17": full_among_parts,
}
