# SPDX-License-Identifier: GPL-2.0-or-later
"""Canaries of MP and RS: RAM packets, their SYNCs, and the RAM section."""

from __future__ import annotations

import struct

from mockdev.wire import writer
from mockdev.wire.structs import (
    MULTIFD_RAM,
    MultifdFlag,
    RamFlag,
)
from tests.canaries.edits import (
    EOS,
    FLUSH,
    Edit,
    be32,
    ram_field,
    renumber,
    silent,
)
from tests.canaries.script import (
    MAIN,
    PAGE,
    RAM_BYTES,
    Script,
    pages,
)


def bad_magic(s: Script) -> None:
    s.after("sync1.2", "1", b"\x99" + bytes(11))


def unknown_flag(s: Script) -> None:
    ram_field(s, "ram1", "flags", be32(0x80))


def other_method(s: Script) -> None:
    silent(s)
    s.find("ram1").data = writer.ram_packet(3, "pc.ram", [], [3 * PAGE, 4 * PAGE, 5 * PAGE])
    ram_field(s, "ram1", "flags", be32(MultifdFlag.ZLIB))


def pages_alloc(s: Script) -> None:
    ram_field(s, "ram1", "pages_alloc", be32(127))


def no_pages(s: Script) -> None:
    head = writer.ram_packet(9, "pc.ram", [], [0])
    s.after("sync0.1", "0", head)
    s.pieces[s.pieces.index(s.find("sync0.1")) + 1].label = "empty"
    ram_field(s, "empty", "zero_pages", be32(0))
    ram_field(s, "empty", "packet_num", struct.pack(">Q", 6))
    ram_field(s, "ram2", "packet_num", struct.pack(">Q", 7))
    for channel in (0, 1):
        ram_field(s, f"sync{channel}.2", "packet_num", struct.pack(">Q", 8 + channel))


def block_padding(s: Script) -> None:
    ram_field(s, "ram1", "ramblock", b"pc.ram\0x")


def offset_unaligned(s: Script) -> None:
    s.patch("ram2", MULTIFD_RAM.size, struct.pack(">Q", PAGE + 1))


def page_twice(s: Script) -> None:
    s.find("ram2").data = writer.ram_packet(6, "pc.ram", [PAGE, PAGE], []) + pages(1, 1)


def data_size(s: Script) -> None:
    ram_field(s, "ram1", "next_packet_size", be32(17))


def bad_zlib(s: Script) -> None:
    silent(s)
    for label in [p.label for p in s.pieces if p.label.startswith("vf") and p.where != MAIN]:
        s.drop(label)
    for device in (0, 1):
        for part in ("start", "end", "full"):
            s.drop(f"vf{device}.{part}")
    s.drop("vf0.part")
    s.drop("vf0.sent")
    s.find("eof").data = writer.end_of_stream([writer.globalstate_description()])
    for label, numbers in (("ram0", (0, 1)), ("ram1", (3,)), ("ram2", (1,))):
        piece = s.find(label)
        head = piece.data[: len(piece.data) - len(numbers) * PAGE]
        piece.data = head + b"\x78\x9c" + b"\xff" * 20
        ram_field(s, label, "flags", be32(MultifdFlag.ZLIB))
        ram_field(s, label, "next_packet_size", be32(22))


def reserved_set(s: Script) -> None:
    ram_field(s, "ram1", "unused64", b"\0\0\1")


def number_missing(s: Script) -> None:
    for channel in (0, 1):
        ram_field(s, f"sync{channel}.2", "packet_num", struct.pack(">Q", 17 + channel))


def number_falls(s: Script) -> None:
    ram_field(s, "ram0", "packet_num", struct.pack(">Q", 4))
    ram_field(s, "sync0.1", "packet_num", struct.pack(">Q", 2))


def sync_with_name(s: Script) -> None:
    ram_field(s, "sync1.1", "ramblock", b"pc.ram")


def cut_packet(s: Script) -> None:
    s.after("sync1.2", "1", writer.sync_packet(99)[:100])


def block_twice(s: Script) -> None:
    blocks = writer.ram_blocks([("pc.ram", RAM_BYTES), ("pc.ram", RAM_BYTES)])
    s.replace("ram.start", writer.ram_blocks([("pc.ram", RAM_BYTES)]), blocks)


def address_in_mark(s: Script) -> None:
    s.replace("ram.part", EOS, writer.number64(PAGE | RamFlag.EOS))


def page_nowhere(s: Script) -> None:
    s.replace("ram.part", EOS, writer.ram_page(RamFlag.ZERO, RAM_BYTES, "pc.ram") + EOS)


def page_on_main(s: Script) -> None:
    s.replace("ram.part", EOS, writer.ram_page(RamFlag.PAGE, 0, "pc.ram") + pages(0) + EOS)


def pages_first(s: Script) -> None:
    s.drop("sync0.0")
    s.find("ram.start").data = s.find("ram.start").data.replace(FLUSH, b"")
    s.drop("sync1.0")
    renumber(s)


def sync_missing(s: Script) -> None:
    s.replace("ram.end", FLUSH, FLUSH + FLUSH)


def epochs_mixed(s: Script) -> None:
    ram_field(s, "ram2", "packet_num", struct.pack(">Q", 5))
    ram_field(s, "sync1.1", "packet_num", struct.pack(">Q", 6))


def ram_after_sync(s: Script) -> None:
    s.after("sync0.2", "0", writer.ram_packet(9, "pc.ram", [], [0]))


def page_missing(s: Script) -> None:
    s.find("ram1").data = writer.ram_packet(3, "pc.ram", [3 * PAGE], [4 * PAGE]) + pages(3)


RAM: dict[str, Edit] = {
    "MP-1": bad_magic,
    "MP-2": unknown_flag,
    "MP-3": other_method,
    "MP-4": pages_alloc,
    "MP-5": no_pages,
    "MP-6": block_padding,
    "MP-7": offset_unaligned,
    "MP-8": page_twice,
    "MP-9": data_size,
    "MP-10": bad_zlib,
    "MP-11": reserved_set,
    "MP-12": number_missing,
    "MP-13": sync_with_name,
    "MP-15": cut_packet,
    "MP-16": number_falls,
    "RS-1": block_twice,
    "RS-4": address_in_mark,
    "RS-5": page_nowhere,
    "RS-6": page_on_main,
    "RS-7": pages_first,
    "RS-8": sync_missing,
    "RS-10": epochs_mixed,
    "RS-12": ram_after_sync,
    "RS-13": page_missing,
}
