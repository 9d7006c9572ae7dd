# SPDX-License-Identifier: GPL-2.0-or-later
"""One canary per invariant: how to turn the good migration into one that breaks just that.

An edit may need a second one to keep the rest in order (a dropped SYNC takes its number along); that is
the craft of it. CANARIES maps ids to edits.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

import msgspec

from mockdev.journal import End, Image, Loaded, Mark, Received, Saved, Sent, State, Verified
from mockdev.wire import writer
from mockdev.wire.structs import (
    MULTIFD_DEVICE_STATE,
    MULTIFD_RAM,
    Command,
    MultifdFlag,
    RamFlag,
    ReturnPath,
    Tag,
    VfioTag,
)
from tests.canaries.script import (
    BACK,
    DEVICES,
    MAIN,
    PAGE,
    RAM_BYTES,
    STEP_NS,
    Script,
    buffer,
    config_payload,
    packet,
    pages,
)

Edit = Callable[[Script], None]
END = writer.vfio_tag(VfioTag.END_OF_STATE)
EOS = writer.ram_mark(RamFlag.EOS)
FLUSH = writer.ram_mark(RamFlag.MULTIFD_FLUSH)


def be32(value: int) -> bytes:
    """Four bytes."""
    return struct.pack(">I", value)


def section(tag: Tag, number: int, *payload: bytes, name: str = "", version: int = 1) -> bytes:
    """A whole section."""
    head = writer.section_head(tag, number, name, 0, version)
    return head + b"".join(payload) + writer.section_footer(number)


def ram_field(s: Script, label: str, name: str, data: bytes) -> None:
    """Overwrite a field of a RAM packet's head."""
    s.patch(label, MULTIFD_RAM.place(name).offset, data)


def device_field(s: Script, label: str, name: str, data: bytes) -> None:
    """Overwrite a field of a device-state packet's head."""
    s.patch(label, MULTIFD_DEVICE_STATE.place(name).offset, data)


def vfio_field(s: Script, label: str, number: int, value: int) -> None:
    """Overwrite the version (0), idx (1) or flags (2) of a packet's VFIO header."""
    s.patch(label, MULTIFD_DEVICE_STATE.size + 4 * number, be32(value))


def resize(s: Script, device: int, idx: int, size: int) -> None:
    """Give a buffer another size, in packet and journals alike."""
    s.find(f"vf{device}.{idx}").data = packet(device, idx, bytes(size))
    for role, kind in (("source", Saved), ("source", Sent), ("target", Received), ("target", Loaded)):
        s.edit(role, kind, where={"device": DEVICES[device], "idx": idx}, size=size)
    without_image(s)


def without_image(s: Script) -> None:
    """What the journals say of whole images does not fit the edit."""
    for role in s.lines:
        s.lines[role] = [line for line in s.lines[role] if not isinstance(line, Image)]


def without_lines(s: Script, *kinds: type) -> None:
    """Leave out all journal lines of these kinds."""
    for role in s.lines:
        s.lines[role] = [line for line in s.lines[role] if not isinstance(line, kinds)]


def silent(s: Script) -> None:
    """Leave the journals out."""
    s.lines.clear()


# --- CH --------------------------------------------------------------------------------------------


def foreign(s: Script) -> None:
    s.after("pong", "web", b"GET / HTTP/1.1\r\n\r\n")


def init_version(s: Script) -> None:
    s.after("pong", "2", writer.init_packet(2, bytes(16))[:4] + be32(2) + bytes(56))


def channel_twice(s: Script) -> None:
    s.patch("init1", 24, b"\0")


def other_uuid(s: Script) -> None:
    s.patch("init1", 8, b"\xff")


def init_reserved(s: Script) -> None:
    s.patch("init1", 63, b"\x01")


def answered(s: Script) -> None:
    s.after("init1", "-1", b"hello")


# --- FR --------------------------------------------------------------------------------------------


def stream_version(s: Script) -> None:
    silent(s)
    s.patch("header", 4, be32(2))


def no_configuration(s: Script) -> None:
    s.drop("configuration")


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


# --- MP --------------------------------------------------------------------------------------------


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


# --- RS --------------------------------------------------------------------------------------------


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


def renumber(s: Script) -> None:
    """Number RAM and SYNC packets anew, in the order of their pieces."""
    labels = [p.label for p in s.pieces if p.label.startswith(("ram", "sync")) and p.where != MAIN]
    for number, label in enumerate(labels):
        ram_field(s, label, "packet_num", struct.pack(">Q", number))


def epochs_mixed(s: Script) -> None:
    ram_field(s, "ram2", "packet_num", struct.pack(">Q", 5))
    ram_field(s, "sync1.1", "packet_num", struct.pack(">Q", 6))


def ram_after_sync(s: Script) -> None:
    s.after("sync0.2", "0", writer.ram_packet(9, "pc.ram", [], [0]))


def page_missing(s: Script) -> None:
    s.find("ram1").data = writer.ram_packet(3, "pc.ram", [3 * PAGE], [4 * PAGE]) + pages(3)


# --- DS --------------------------------------------------------------------------------------------


def beside_zlib(s: Script) -> None:
    silent(s)
    running = {"0": zlib.compressobj(), "1": zlib.compressobj()}  # one stream a channel
    for label, numbers in (("ram0", (0, 1)), ("ram1", (3,)), ("ram2", (1,))):
        piece = s.find(label)
        head = piece.data[: len(piece.data) - len(numbers) * PAGE]
        stream = running[piece.where]
        data = stream.compress(pages(*numbers)) + stream.flush(zlib.Z_SYNC_FLUSH)
        piece.data = head + data
        ram_field(s, label, "flags", be32(MultifdFlag.ZLIB))
        ram_field(s, label, "next_packet_size", be32(len(data)))


def unknown_device(s: Script) -> None:
    data = writer.device_state_packet("0000:00:09.0/vfio", 0, 0, len(config_payload()), config=True)
    s.after("vf1.2", "1", data + config_payload())


def vfio_version(s: Script) -> None:
    vfio_field(s, "vf1.0", 0, 1)


def vfio_flags(s: Script) -> None:
    vfio_field(s, "vf1.0", 2, 4)


def index_twice(s: Script) -> None:
    s.after("vf1.0", "0", packet(1, 0, buffer(1, 0)))
    without_lines(s, Image, Sent)


def no_config(s: Script) -> None:
    vfio_field(s, "vf1.2", 2, 0)
    without_image(s)


def index_falls(s: Script) -> None:
    s.swap("vf0.0", "vf0.2")


def config_mark(s: Script) -> None:
    s.replace("vf1.2", writer.vfio_tag(VfioTag.DEV_CONFIG_STATE), writer.vfio_tag(VfioTag.DEV_DATA_STATE))


def sent_early(s: Script) -> None:
    lines = s.lines["source"]
    mark = next(line for line in lines if isinstance(line, Mark) and line.name == "switchover-start")
    lines.remove(mark)
    at = next(i for i, line in enumerate(lines) if isinstance(line, Sent) and line.idx == 2)
    lines.insert(at + 1, msgspec.structs.replace(mark, t=lines[at].t + 1))


def gap(s: Script) -> None:
    s.drop("vf1.0")
    without_lines(s, Image, Sent)


def data_in_end(s: Script) -> None:
    s.replace("vf1.end", END, writer.vfio_data(3) + b"abc" + END)
    without_image(s)


def loaded_out_of_order(s: Script) -> None:
    lines = s.lines["target"]
    at = [i for i, line in enumerate(lines) if isinstance(line, Loaded) and line.device == DEVICES[0]]
    first, second = at[2], at[3]
    lines[first], lines[second] = lines[second], lines[first]


def loaded_unreceived(s: Script) -> None:
    lines = s.lines["target"]
    line = next(x for x in lines if isinstance(x, Received) and x.idx == 1)
    lines.remove(line)


# --- BC --------------------------------------------------------------------------------------------


def buffer_large(s: Script) -> None:
    resize(s, 1, 0, (1 << 20) + 1)
    without_lines(s, Received)


def packet_empty(s: Script) -> None:
    s.after("vf1.0", "0", writer.device_state_packet(DEVICES[1], 0, 0, 0)[: MULTIFD_DEVICE_STATE.size])
    s.pieces[s.pieces.index(s.find("vf1.0")) + 1].label = "empty"
    device_field(s, "empty", "next_packet_size", be32(0))
    without_lines(s, Sent)


def index_large(s: Script) -> None:
    silent(s)
    s.ends["1"] = "cut"
    vfio_field(s, "vf1.2", 1, 0x7FFFFFFF)
    s.pieces[:] = [p for p in s.pieces if p.where != BACK or p.label != "shut"]


def cap_exceeded(s: Script) -> None:
    s.edit("target", Received, where={"idx": 0}, queued_bytes=1001)


def block_empty(s: Script) -> None:
    s.after("vf0.part", MAIN, section(Tag.SECTION_PART, 3, writer.vfio_data(0), END))


def page_data_large(s: Script) -> None:
    ram_field(s, "ram1", "next_packet_size", be32((512 << 10) + 1))


# --- SM, RP, EN ------------------------------------------------------------------------------------


def no_switchover(s: Script) -> None:
    s.drop("switchover")


def switchover_late(s: Script) -> None:
    s.swap("switchover", "ram.end")


def end_after_device(s: Script) -> None:
    s.swap("vf1.end", "vf0.full")


def init_data_twice(s: Script) -> None:
    sent = writer.vfio_tag(VfioTag.DEV_INIT_DATA_SENT)
    for _ in (1, 2):
        s.after("vf0.part", MAIN, section(Tag.SECTION_PART, 3, sent))


def load_ready(s: Script) -> None:
    s.replace("vf1.full", END, writer.vfio_tag(VfioTag.DEV_CONFIG_LOAD_READY))


def answer_uninvited(s: Script) -> None:
    s.drop("open")
    s.drop("ping")
    s.drop("pong")


def shut_length(s: Script) -> None:
    s.after("pong", BACK, writer.return_path_message(ReturnPath.SWITCHOVER_ACK, b"x"))


def pong_alone(s: Script) -> None:
    s.find("pong").data += writer.pong(b"\0\0\0\7")


def after_shut(s: Script) -> None:
    s.find("shut").data += writer.return_path_message(ReturnPath.SWITCHOVER_ACK)


def ack_twice(s: Script) -> None:
    s.find("pong").data += 2 * writer.return_path_message(ReturnPath.SWITCHOVER_ACK)


def asks_page(s: Script) -> None:
    s.find("pong").data += writer.return_path_message(ReturnPath.REQ_PAGES, bytes(12))


def shut_early(s: Script) -> None:
    shut, end = s.find("shut"), s.find("eof")
    s.pieces.remove(shut)
    s.pieces.insert(s.pieces.index(end), shut)
    shut.time_ns = end.time_ns
    end.time_ns += 2_000 * STEP_NS
    s.now_ns = end.time_ns
    without_lines(s, End)


def trailing(s: Script) -> None:
    s.find("eof").data += b"more"


def page_size(s: Script) -> None:
    s.replace("eof", b'"page_size": 4096', b'"page_size": 8192')


def no_globalstate(s: Script) -> None:
    s.drop("globalstate")
    s.find("eof").data = writer.end_of_stream([writer.opaque_description(n, 0, 8) for n in DEVICES])


# --- ST, EQ, OC ------------------------------------------------------------------------------------


def without_arc(s: Script, role: str, device: int, old: str, new: str) -> None:
    """Leave a line about an arc out."""
    arc = (DEVICES[device], old, new)
    lines = s.lines[role]
    lines.remove(next(x for x in lines if isinstance(x, State) and (x.device, x.old, x.new) == arc))


def arc_skipped(s: Script) -> None:
    without_arc(s, "target", 0, "RUNNING", "RUNNING_P2P")
    without_arc(s, "target", 0, "STOP", "RESUMING")
    s.edit("target", State, where={"device": DEVICES[0]}, new="RESUMING")


def state_jumps(s: Script) -> None:
    without_arc(s, "target", 0, "RUNNING_P2P", "STOP")


def saved_too_late(s: Script) -> None:
    without_arc(s, "source", 1, "STOP", "STOP_COPY")
    without_arc(s, "source", 1, "STOP_COPY", "STOP")


def loaded_too_early(s: Script) -> None:
    s.lines["target"] = [x for x in s.lines["target"] if not isinstance(x, State)]


def other_digest(s: Script) -> None:
    s.edit("target", Image, digest="xxh3-128:" + 32 * "0")


def not_verified(s: Script) -> None:
    s.edit("target", Verified, equal=False, wrong_at=3)


def other_size(s: Script) -> None:
    s.edit("source", Sent, where={"idx": 0}, size=41)


def less_loaded(s: Script) -> None:
    s.edit("target", Loaded, where={"idx": -1}, size=47)


def sent_unseen(s: Script) -> None:
    lines = s.lines["source"]
    line = next(x for x in lines if isinstance(x, Sent) and x.idx == 1)
    lines.remove(line)


def both_run(s: Script) -> None:
    s.edit("source", End, runs=True)


def sides_differ(s: Script) -> None:
    s.edit("target", End, outcome="failed", runs=False)


CANARIES: dict[str, Edit] = {
    "CH-1": foreign,
    "CH-3": init_version,
    "CH-4": channel_twice,
    "CH-5": other_uuid,
    "CH-6": init_reserved,
    "CH-7": answered,
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
    "DS-1": beside_zlib,
    "DS-2": unknown_device,
    "DS-3": vfio_version,
    "DS-4": vfio_flags,
    "DS-5": index_twice,
    "DS-6": no_config,
    "DS-7": index_falls,
    "DS-8": config_mark,
    "DS-9": sent_early,
    "DS-10": gap,
    "DS-11": data_in_end,
    "DS-13": loaded_out_of_order,
    "DS-14": loaded_unreceived,
    "BC-1": buffer_large,
    "BC-2": packet_empty,
    "BC-3": index_large,
    "BC-4": cap_exceeded,
    "BC-5": block_empty,
    "BC-6": page_data_large,
    "SM-1": no_switchover,
    "SM-2": switchover_late,
    "SM-3": end_after_device,
    "SM-6": init_data_twice,
    "SM-8": load_ready,
    "RP-1": answer_uninvited,
    "RP-2": shut_length,
    "RP-3": pong_alone,
    "RP-4": after_shut,
    "RP-5": ack_twice,
    "RP-6": asks_page,
    "RP-7": shut_early,
    "EN-1": trailing,
    "EN-2": page_size,
    "EN-3": no_globalstate,
    "ST-1": arc_skipped,
    "ST-2": state_jumps,
    "ST-3": saved_too_late,
    "ST-4": loaded_too_early,
    "EQ-1": other_digest,
    "EQ-2": not_verified,
    "EQ-3": other_size,
    "EQ-4": less_loaded,
    "EQ-5": sent_unseen,
    "OC-1": both_run,
    "OC-2": sides_differ,
}
