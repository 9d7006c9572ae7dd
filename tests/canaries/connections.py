# SPDX-License-Identifier: GPL-2.0-or-later
"""Canaries of CH: connections and their init packets."""

from __future__ import annotations

from mockdev.wire import writer
from tests.canaries.edits import (
    Edit,
    be32,
)
from tests.canaries.script import (
    Script,
)


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


CONNECTIONS: dict[str, Edit] = {
    "CH-1": foreign,
    "CH-3": init_version,
    "CH-4": channel_twice,
    "CH-5": other_uuid,
    "CH-6": init_reserved,
    "CH-7": answered,
}
