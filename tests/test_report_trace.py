# SPDX-License-Identifier: GPL-2.0-or-later
"""trace.json is what Perfetto's importer of Chrome traces takes: by its rules, and by its own word."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.browser import Browser, chromium
from tests.canaries.births import CANARIES
from tests.canaries.lent import lend
from tests.canaries.script import DEVICES, START_NS, STEP_NS, Script, good
from tests.perfetto import perfetto
from verifier.check import check_path
from verifier.report.pages import TRACE, Pages


def trace_of(script: Script, folder: Path) -> dict[str, Any]:
    """The trace of a script's evidence folder, as it is read back."""
    script.write_folder(folder)
    pages = Pages()
    report = check_path(folder, watch=pages.watch)
    pages.write(folder, report, "a test", one_target=True)
    read: dict[str, Any] = json.loads((folder / TRACE).read_text(), parse_constant=pytest.fail)
    return read


def lent() -> Script:
    script = good()
    lend(script)
    return script


def crowded() -> Script:
    """Everything at the same time, as what one segment holds is."""
    script = good(journals=False)
    for piece in script.pieces:
        piece.time_ns = START_NS
    return script


def violated() -> Script:
    script = good()
    CANARIES["DS-3"](script)
    return script


@pytest.mark.parametrize("make", [good, lent, violated])
def test_every_event_is_one_that_perfetto_reads(make: Any, tmp_path: Path) -> None:
    trace = trace_of(make(), tmp_path)
    named: set[tuple[str, int, int]] = set()
    slices: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
    threads: dict[int, set[int]] = defaultdict(set)
    for event in trace["traceEvents"]:
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        lane = event["pid"], event["tid"]
        threads[event["tid"]].add(event["pid"])
        if event["ph"] == "M":
            named.add((event["name"], *lane))
            (value,) = event["args"].values()
            wanted = int if event["name"].endswith("sort_index") else str
            assert isinstance(value, wanted)
            continue
        assert event["ts"] >= 0
        assert math.isfinite(event["ts"])
        if event["ph"] == "X":
            assert event["dur"] >= 0
            assert ("thread_name", *lane) in named
            slices[lane].append((event["ts"], event["ts"] + event["dur"]))
        elif event["ph"] == "C":
            assert event["args"]
            assert all(isinstance(value, int | float) for value in event["args"].values())
        else:
            assert event["ph"] == "i"
            assert event["s"] in ("g", "p", "t")
    assert all(len(processes) == 1 for processes in threads.values())  # a number is one thread's alone
    for lane, spans in slices.items():  # slices of a thread nest, or Perfetto drops some
        for (start, end), (following, _) in pairwise(spans):
            assert start < following, lane  # those that begin together would be stacked
            assert end <= following, lane


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.mark.parametrize("make", [lent, violated, crowded])
def test_perfetto_takes_every_event_and_stacks_none(make: Any, browser: Browser, tmp_path: Path) -> None:
    events = [event for event in trace_of(make(), tmp_path)["traceEvents"] if event["ph"] != "M"]

    def ns(event: dict[str, Any], name: str) -> int:
        value: float = event.get(name, 0)
        return round(value * 1000)

    with perfetto(browser, tmp_path / TRACE) as opened:
        assert opened.rows("select name, value from stats where severity != 'info' and value != 0") == []
        shown = opened.rows("select ts, dur, name from slice")
        counted = opened.rows(
            "select ts, cast(value as int), name from counter join track on track_id = track.id"
        )
        processes = opened.rows("select name from process where name is not null order by pid")
        deep = opened.rows("select distinct name from slice where depth > 0")
    slices = [[ns(event, "ts"), ns(event, "dur"), event["name"]] for event in events if event["ph"] != "C"]
    assert sorted(shown) == sorted(slices)
    counters = [event for event in events if event["ph"] == "C"]
    values = [[ns(event, "ts"), event["args"]["waiting"], event["name"] + " waiting"] for event in counters]
    assert sorted(counted) == sorted(values)
    assert processes == [["migration"], ["source"], ["wire"], ["target"]]
    assert deep == []


def test_it_shows_what_was_seen(tmp_path: Path) -> None:
    script = good()
    events = trace_of(script, tmp_path)["traceEvents"]
    names = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {"migration", "source", "wire", "target"}
    config = next(
        e
        for e in events
        if e["name"] == "config" and e["ph"] == "X" and "args" in e and "device" in e["args"]
    )
    assert config["args"]["device"] in DEVICES
    counters = [event for event in events if event["ph"] == "C"]
    assert max(event["args"]["waiting"] for event in counters) == 48
    assert {event["name"] for event in counters} == {f"{device} queue (bytes)" for device in DEVICES}
    (stop,) = [event for event in events if event["ph"] == "i" and event["name"] == "stop"]
    begin = min(line.t for lines in script.lines.values() for line in lines)
    (said,) = [line for line in script.lines["source"] if getattr(line, "name", "") == "stop"]
    assert stop["ts"] == (said.t - begin) / 1000
    state = next(event for event in events if event["name"] == "STOP_COPY")
    assert state["dur"] > STEP_NS / 1000
