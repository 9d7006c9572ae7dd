# SPDX-License-Identifier: GPL-2.0-or-later
"""Judges a script without a file: for tests that judge thousands of variants."""

from __future__ import annotations

from tests.canaries.script import BACK, MAIN, STEP_NS, Script
from verifier.capture.packets import Address
from verifier.capture.stream import Flow
from verifier.history.decode import FlowDecoder
from verifier.history.facts import Facts
from verifier.history.history import History
from verifier.invariants import INVARIANTS
from verifier.invariants.judge import Judge
from verifier.invariants.reporting import Found, report_of
from verifier.verdict import Report

_TARGET = Address("10.0.0.2", 4444)


def judge(script: Script) -> Report:
    """The report on the script's bytes, its journals aside, as a capture of them would give it."""
    judges: dict[int, Judge] = {}

    def make(facts: Facts) -> Judge:
        judges[facts.number] = Judge(facts, "script", INVARIANTS)
        return judges[facts.number]

    history = History(make)
    history.open(b"".join(piece.data for piece in script.pieces))
    sinks: dict[str, FlowDecoder] = {}
    for number, where in enumerate(script.streams()):
        source = Address("10.0.0.1", 40000 + number)
        sinks[where] = history.sink(Flow(0, number, source, _TARGET, True, False))
        back = BACK if where == MAIN else "-" + where
        sinks[back] = history.sink(Flow(0, number, _TARGET, source, False, False))
    at = 0
    for piece in script.pieces:
        sink = sinks[piece.where]
        end = at + len(piece.data)
        sink.data(at, end, piece.time_ns)
        sink.lane.flow.delivered_bytes += len(piece.data)
        at = end
    for sink in sinks.values():
        sink.end("fin", script.now_ns + STEP_NS)
    history.end_capture()
    for one in judges.values():
        one.at_end()
    report = report_of(history, judges, Found())
    history.close()
    return report
