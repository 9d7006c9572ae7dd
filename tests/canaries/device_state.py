# SPDX-License-Identifier: GPL-2.0-or-later
"""Canaries of DS and BC: device state and its bounds."""

from __future__ import annotations

import zlib

import msgspec

from mockdev.journal import Image, Loaded, Mark, Received, Saved, Sent
from mockdev.wire import writer
from mockdev.wire.structs import (
    MULTIFD_DEVICE_STATE,
    MultifdFlag,
    Tag,
    VfioTag,
)
from tests.canaries.edits import (
    END,
    Edit,
    be32,
    device_field,
    ram_field,
    resize,
    section,
    silent,
    vfio_field,
    without_image,
    without_lines,
)
from tests.canaries.script import (
    BACK,
    DEVICES,
    MAIN,
    PAGE,
    Script,
    buffer,
    config_payload,
    packet,
    pages,
)


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


def read_out_of_order(s: Script) -> None:
    lines = s.lines["source"]
    at = [i for i, line in enumerate(lines) if isinstance(line, Saved) and line.device == DEVICES[0]]
    first, second = at[1], at[2]
    lines[first], lines[second] = lines[second], lines[first]


def loaded_before_switchover(s: Script) -> None:
    lines = s.lines["target"]
    mark = next(line for line in lines if isinstance(line, Mark) and line.name == "switchover-start")
    lines.remove(mark)
    at = next(i for i, line in enumerate(lines) if isinstance(line, Loaded) and line.idx == 0)
    lines.insert(at + 1, mark)


def loaded_out_of_order(s: Script) -> None:
    lines = s.lines["target"]
    at = [i for i, line in enumerate(lines) if isinstance(line, Loaded) and line.device == DEVICES[0]]
    first, second = at[2], at[3]
    lines[first], lines[second] = lines[second], lines[first]


def loaded_unreceived(s: Script) -> None:
    lines = s.lines["target"]
    line = next(x for x in lines if isinstance(x, Received) and x.idx == 1)
    lines.remove(line)


def buffer_large(s: Script) -> None:
    resize(s, 1, 0, (1 << 20) + 1)
    without_lines(s, Received)


def packet_empty(s: Script) -> None:
    head = writer.device_state_packet(DEVICES[1], 0, 0, 0)[: MULTIFD_DEVICE_STATE.size]
    s.after("vf1.0", "0", head)
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


def still_queued(s: Script) -> None:
    s.edit("target", Loaded, where={"config": True}, queued_bytes=1)


def block_empty(s: Script) -> None:
    s.after("vf0.part", MAIN, section(Tag.SECTION_PART, 3, writer.vfio_data(0), END))


def contents_swapped(s: Script) -> None:
    for idx, other in ((0, 1), (1, 0)):
        s.find(f"vf0.{idx}").data = packet(0, idx, buffer(0, other))
    without_image(s)


def page_data_large(s: Script) -> None:
    ram_field(s, "ram1", "next_packet_size", be32((512 << 10) + 1))


DEVICE_STATE: dict[str, Edit] = {
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
    "DS-15": contents_swapped,
    "DS-17": read_out_of_order,
    "DS-18": loaded_before_switchover,
    "BC-1": buffer_large,
    "BC-2": packet_empty,
    "BC-3": index_large,
    "BC-4": cap_exceeded,
    "BC-7": still_queued,
    "BC-5": block_empty,
    "BC-6": page_data_large,
}
