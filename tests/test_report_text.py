# SPDX-License-Identifier: GPL-2.0-or-later
"""What a person reads: the verdict first, each thing once, nothing that a terminal obeys."""

from __future__ import annotations

import io

import pytest

from verifier.report.sizes import duration_text, rate_text, size_text
from verifier.report.text import entry_text, plain, print_report
from verifier.verdict import DeviceRow, InputRow, Report, RunRow, Standing, Timing, Unknown, Violation


def printed(report: Report) -> list[str]:
    out = io.StringIO()
    print_report(report, out)
    return out.getvalue().splitlines()


def test_the_verdict_comes_first_then_facts_times_devices_reasons() -> None:
    report = Report(
        standing=Standing.UNKNOWN,
        outcome="failed-clean",
        channels=6,
        seed=7,
        timing=Timing(downtime_ms=274.4, throughput_bytes_per_s=1.5e9),
        devices=[DeviceRow(id="0000:00:02.0/vfio", equal=None)],
        unknown=[Unknown(id="outcome", why="the target failed: [no] reason")],
    )
    lines = printed(report)
    assert lines[0].startswith("unknown: ")
    assert lines[1] == "outcome failed-clean · 6 channels · seed 7"
    assert lines[2] == "downtime 274 ms · 1.5 GB/s"
    assert lines[4].startswith("0000:00:02.0/vfio")
    assert lines[5:] == ["unknown outcome: the target failed: [no] reason"]


def test_what_the_run_adds_stands_below_the_outcome() -> None:
    run = RunRow(
        endpoints={"source": "mock", "target": "QEMU 10.0.2"},
        faults=["target.vf0.load:eio@2MiB"],
        struck=True,
        failed_as_injected=True,
        guest_ram_equal=True,
        guest_ram_pages=4096,
    )
    lines = printed(Report(outcome="failed-clean", run=run))
    assert lines[2] == (
        "source mock, target QEMU 10.0.2 · faults target.vf0.load:eio@2MiB · failed as it was made to · "
        "guest RAM equal, 4096 pages compared"
    )
    assert "guest RAM NOT equal" in printed(Report(run=RunRow(guest_ram_equal=False)))[1]
    assert not any("guest" in line for line in printed(Report(run=RunRow(endpoints={"source": "mock"}))))


def test_one_reason_of_many_is_said_once_and_shortly() -> None:
    why = "it needs the whole main channel"
    lines = printed(Report(unknown=[Unknown(id=f"X-{n}", why=why) for n in range(40)]))
    assert lines[-1] == f"unknown X-0, X-1, X-2, X-3, X-4, X-5 and 34 more: {why}"


def test_what_cannot_be_read_is_said_once() -> None:
    row = InputRow(path="x", error="x: there is no such file")
    lines = printed(Report(inputs=[row], unknown=[Unknown(id="input", why=row.error)]))
    assert [line for line in lines if "no such file" in line] == ["unreadable x: there is no such file"]


def test_a_violation_many_times_is_shown_three_times() -> None:
    violation = Violation(id="A-1", severity="loss", statement="s", scope="vf", message="\x1b[2Jm [b]")
    lines = printed(Report(standing=Standing.VIOLATED, violations=[violation] * 1000))
    assert sum(line.startswith("violated A-1") for line in lines) == 3
    assert lines[-1].startswith("  ... A-1 997 times more")
    assert lines[1].endswith("\\x1b[2Jm [b]")


def test_a_long_line_is_not_folded_in_a_file() -> None:
    why = "word " * 200 + "end"
    assert printed(Report(unknown=[Unknown(id="x", why=why)]))[-1] == f"unknown x: {why}"


def test_plain() -> None:
    assert plain("0000:00:02.0/vfio µ") == "0000:00:02.0/vfio µ"
    assert plain("a\nb\x1b\x9b\u202e") == "a\\nb\\x1b\\x9b\\u202e"
    assert "\x1b" not in entry_text({"flow": "main", "kind": "X", "name": "\x1b]0;title\x07"})


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (1, "1 byte"), (1023, "1023 bytes"), (1 << 20, "1 MiB"), (3 << 29, "1.5 GiB")],
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


def test_rates_and_times() -> None:
    assert [rate_text(r) for r in (12, 5300, 5.3e9)] == ["12 B/s", "5.3 kB/s", "5.3 GB/s"]
    assert [duration_text(t) for t in (0.31, 7.25, 274.4, 999.7, 1780)] == [
        "0.31 ms", "7.2 ms", "274 ms", "1.00 s", "1.78 s",
    ]  # fmt: skip
