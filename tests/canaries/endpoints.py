# SPDX-License-Identifier: GPL-2.0-or-later
"""Canaries of ST, EQ and OC: what the endpoints' journals say."""

from __future__ import annotations

from mockdev.journal import End, Image, Loaded, Sent, State, Verified
from tests.canaries.edits import (
    Edit,
)
from tests.canaries.script import (
    DEVICES,
    Script,
)


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
    s.edit("target", End, outcome="failed")
    s.patch("shut", -1, b"\1")


def nobody_runs(s: Script) -> None:
    s.edit("target", End, runs=False)


ENDPOINTS: dict[str, Edit] = {
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
    "OC-3": nobody_runs,
}
