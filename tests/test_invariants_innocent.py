# SPDX-License-Identifier: GPL-2.0-or-later
"""What real QEMU does rightly, though it looks like a fault at first sight, is never called a violation."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from mockdev.wire import writer
from mockdev.wire.structs import MULTIFD_DEVICE_STATE, Command, Tag, VfioTag
from tests.canaries.bench_of_one import judge
from tests.canaries.edits import END, be32, ram_field, section
from tests.canaries.script import DEVICES, MAIN, PAGE, Script, good, packet, pages
from verifier.capture.pcapng import open_capture
from verifier.check import check_path
from verifier.verdict import Report, Standing


def bare() -> Script:
    """The good migration without journals."""
    return good(journals=False)


def ram_only() -> Script:
    """A migration without VFIO devices."""
    s = bare()
    for label in [p.label for p in s.pieces if p.label.startswith("vf")]:
        s.drop(label)
    s.find("eof").data = writer.end_of_stream([writer.globalstate_description()])
    return s


def machine(s: Script, name: str) -> None:
    """Another machine type."""
    s.find("configuration").data = writer.configuration(name)


def doubts(report: Report) -> set[str]:
    """Ids of what could not be judged, in a report without violations."""
    assert not report.violations, report.violations
    return {unknown.id for unknown in report.unknown}


def test_postcopys_second_channel_has_no_magic() -> None:
    s = ram_only()
    s.after("ping", MAIN, writer.command(Command.POSTCOPY_ADVISE, struct.pack(">QQ", PAGE, PAGE)))
    s.after("ram.part", "preempt", struct.pack(">Q", 8) + b"\6pc.ram" + pages(1))
    assert "CH-1" in doubts(judge(s))


@pytest.mark.parametrize("label", ["init0", "init1"])
def test_a_channel_without_its_first_bytes_is_still_one(label: str, tmp_path: Path) -> None:
    """A capture that lost them does not show its id, and mostly shows that only when all is over."""
    path = tmp_path / "c.pcapng"
    s = bare()
    s.write_capture(path)
    raw, data = path.read_bytes(), s.find(label).data
    with open_capture(path) as capture:
        packets = [(a - 28, b + (a - b) % 4 + 4, data in raw[a:b]) for a, b, *_ in capture.packets()]
    ((start, stop, _),) = [packet for packet in packets if packet[2]]
    path.write_bytes(raw[:start] + raw[stop : packets[-1][1]])
    report = check_path(path)
    assert report.standing is Standing.UNKNOWN, report.violations
    assert {"flow", "CH-4"} <= {unknown.id for unknown in report.unknown}


def test_a_single_channel_of_a_vm_without_uuid_has_nothing_to_compare() -> None:
    s = bare()
    s.pieces[:] = [p for p in s.pieces if p.where != "1"]
    assert "CH-5" in {u.id for u in judge(s).unknown}
    s.patch("init0", 8, bytes(16))
    report = judge(s)
    assert "CH-5" not in {u.id for u in report.unknown}
    assert "CH-5" not in report.exercised.invariants
    s.patch("init0", 13, b"\1")  # one byte changed: it cannot hold any more
    assert "CH-5" in {u.id for u in judge(s).unknown}


@pytest.mark.parametrize("name", ["virtio-mem-device-early", "virtio-balloon"])
def test_devices_may_take_pages_out(name: str) -> None:
    s = bare()
    s.find("ram1").data = writer.ram_packet(3, "pc.ram", [3 * PAGE], [4 * PAGE]) + pages(3)
    assert {v.id for v in judge(s).violations} == {"RS-13"}
    idstr = f"0000:00:07.0/{name}"
    s.after("vf1.start", MAIN, section(Tag.SECTION_FULL, 8, b"xyz", name=idstr))
    described = [writer.opaque_description(idstr, 0, 3)]
    described += [writer.opaque_description(name, 0, 8) for name in DEVICES]
    s.find("eof").data = writer.end_of_stream([*described, writer.globalstate_description()])
    assert doubts(judge(s)) == {"RS-13"}


def test_the_run_state_may_be_left_out() -> None:
    s = bare()
    s.drop("globalstate")
    s.find("eof").data = writer.end_of_stream([writer.opaque_description(n, 0, 8) for n in DEVICES])
    assert doubts(judge(s)) == {"EN-3"}


def test_the_description_may_be_left_out_where_the_target_did_not_wait_for_it() -> None:
    s = bare()
    s.find("eof").data = bytes((Tag.EOF,))
    report = judge(s)
    assert report.standing is Standing.HOLDS, (report.violations, report.unknown)
    assert "FR-11" not in report.exercised.invariants  # nothing was compared


def test_the_configuration_may_be_left_out() -> None:
    s = bare()
    s.drop("configuration")
    assert doubts(judge(s)) >= {"FR-2"}


def test_switchover_start_is_a_property_that_a_machine_type_only_presets() -> None:
    without = ram_only()
    without.drop("switchover")
    assert doubts(judge(without)) == {"SM-1"}
    older = bare()  # an older machine type with the property on may carry device state, too
    machine(older, "pc-q35-9.2")
    assert judge(older).standing is Standing.HOLDS


def test_a_machine_type_without_a_release_is_judged_all_the_same() -> None:
    s = bare()
    machine(s, "microvm")
    assert judge(s).standing is Standing.HOLDS


def test_load_ready_may_be_switched_on_for_an_older_machine_type() -> None:
    s = bare()
    s.replace("vf1.full", END, writer.vfio_tag(VfioTag.DEV_CONFIG_LOAD_READY))
    assert doubts(judge(s)) == {"SM-8"}


def test_an_iterable_may_turn_out_to_have_nothing_to_send() -> None:
    s = bare()
    s.after("vf1.start", MAIN, section(Tag.SECTION_START, 8, b"", name="dirty-bitmap"))
    assert judge(s).standing is Standing.HOLDS


def test_sources_before_nine_send_pages_with_sync() -> None:
    s = ram_only()
    ram_field(s, "sync0.0", "pages_alloc", be32(128))
    assert {v.id for v in judge(s).violations} == {"MP-4"}
    machine(s, "pc-q35-8.2")
    assert doubts(judge(s)) == {"MP-4"}
    ram_field(s, "sync0.0", "ramblock", b"pc.ram")
    assert doubts(judge(s)) == {"MP-4", "MP-13"}


def test_an_empty_device_state_packet_is_told_of_once() -> None:
    s = bare()
    s.after("vf1.0", "0", packet(1, 0, b"")[: MULTIFD_DEVICE_STATE.size])
    s.pieces[s.pieces.index(s.find("vf1.0")) + 1].label = "empty"
    s.patch("empty", MULTIFD_DEVICE_STATE.place("next_packet_size").offset, be32(0))
    assert [v.id for v in judge(s).violations] == ["BC-2"]
