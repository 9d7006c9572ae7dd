# SPDX-License-Identifier: GPL-2.0-or-later
"""Judges a script without a file: for tests that judge thousands of variants."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from tests.canaries.script import BACK, MAIN, STEP_NS, Piece, Script
from verifier.capture.packets import Address
from verifier.history.observation import Said, Seen
from verifier.invariants.feed import Feed
from verifier.verdict import Report


def judge(
    script: Script,
    *,
    lines: bool = False,
    piece_bytes: int = 1 << 30,
    on_seen: Callable[[Seen], None] | None = None,
) -> Report:
    """The report on the script's bytes, as a capture of them would give it. lines: and on its journals.

    piece_bytes: how many bytes are fed at once, at most.
    """
    feed = Feed(file="script", on_seen=on_seen)
    connections = {
        where: feed.connection(Address("127.0.0.1", 40000 + number), Address("127.0.0.1", script.port))
        for number, where in enumerate(script.streams())
    }
    journals: list[list[Said | Piece]] = [
        [Said(role, line, f"{role}.jsonl", number, 1) for number, line in enumerate(journal)]
        for role, journal in script.lines.items()
    ]
    pieces: list[Said | Piece] = [*script.pieces]
    for item in heapq.merge(*(journals if lines else ()), pieces, key=lambda item: item.time_ns):
        if isinstance(item, Said):
            feed.say(item)
            continue
        if item.where == BACK:
            carry = connections[MAIN].received
        elif item.where.startswith("-"):  # against the direction of a channel
            carry = connections[item.where[1:]].received
        else:
            carry = connections[item.where].sent
        for start in range(0, len(item.data), piece_bytes):
            carry(item.data[start : start + piece_bytes], item.time_ns)
    for connection in connections.values():
        connection.close(script.now_ns + STEP_NS)
    return feed.report()
