# SPDX-License-Identifier: GPL-2.0-or-later
"""Canaries of SM, RP and EN: the switchover, the answers, the end."""

from __future__ import annotations

from mockdev.journal import End
from mockdev.wire import writer
from mockdev.wire.structs import (
    ReturnPath,
    Tag,
    VfioTag,
)
from tests.canaries.edits import (
    END,
    Edit,
    renumber,
    section,
    silent,
    without_lines,
)
from tests.canaries.script import (
    BACK,
    MAIN,
    STEP_NS,
    Script,
)


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
    s.after("vf1.full", MAIN, s.find("vf1.full").data)


def answer_uninvited(s: Script) -> None:
    s.drop("open")
    s.drop("ping")
    s.drop("pong")


def shut_length(s: Script) -> None:
    s.after("pong", BACK, writer.return_path_message(ReturnPath.SWITCHOVER_ACK, b"x"))


def pong_alone(s: Script) -> None:
    s.find("pong").data += writer.pong(b"\0\0\0\7")


def after_shut(s: Script) -> None:
    s.drop("ack")
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


def no_ram(s: Script) -> None:
    silent(s)
    for label in ("start", "part", "end"):
        s.drop(f"ram.{label}")
    for number in (0, 1, 2):
        s.drop(f"ram{number}")
    renumber(s)


SWITCHOVER: dict[str, Edit] = {
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
    "EN-3": no_ram,
}
