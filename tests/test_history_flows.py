# SPDX-License-Identifier: GPL-2.0-or-later
"""Roles do not depend on ports, and several migrations in one capture are kept apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from mockdev.runtime.pcap_writer import PcapngWriter
from tests.canaries.script import MAIN, good
from verifier.capture.flows import CHANNEL_HEAD, MAIN_HEAD, Directory, Lane, Role
from verifier.capture.packets import Address
from verifier.capture.stream import Flow
from verifier.check import check_path
from verifier.verdict import Standing


class Net:
    """Connections as the reassembly would show them."""

    def __init__(self) -> None:
        self.directory = Directory()
        self.count = 0

    def connect(self, port: int = 4444) -> tuple[Lane, Lane]:
        """Both directions of a new connection to that port."""
        ends = Address("10.0.0.1", 50000 + self.count), Address("10.0.0.2", port)
        there = self.directory.meet(Flow(0, self.count, *ends, True, False))
        back = self.directory.meet(Flow(0, self.count, *ends[::-1], False, False))
        self.count += 1
        return there, back

    def begin(self, head: bytes, port: int = 4444) -> Lane:
        """A connection whose first bytes have come."""
        lane, _ = self.connect(port)
        self.directory.decide(lane, head)
        return lane


def test_both_directions_get_their_roles_at_once() -> None:
    net = Net()
    there, back = net.connect()
    assert net.directory.decide(there, MAIN_HEAD) is Role.MAIN
    assert back.role is Role.RETURN_PATH
    channel, reverse = net.connect()
    net.directory.decide(channel, CHANNEL_HEAD)
    assert reverse.role is Role.REVERSE
    assert {lane.migration for lane in (there, back, channel, reverse)} == {0}


def test_a_channel_may_speak_before_the_main_channel() -> None:
    net = Net()
    channel = net.begin(CHANNEL_HEAD)
    main = net.begin(MAIN_HEAD)
    assert channel.migration == main.migration == 0


def test_two_targets_are_two_migrations_at_once() -> None:
    net = Net()
    lanes = [net.begin(head, port) for head in (MAIN_HEAD, CHANNEL_HEAD) for port in (1, 2)]
    assert [lane.migration for lane in lanes] == [0, 1, 0, 1]


def test_a_retry_to_the_same_target_is_another_migration() -> None:
    net = Net()
    first = [net.begin(MAIN_HEAD), net.begin(CHANNEL_HEAD)]
    for lane in first:
        net.directory.end(lane)
    early = net.begin(CHANNEL_HEAD)
    second = net.begin(MAIN_HEAD)
    assert [lane.migration for lane in (*first, early, second)] == [0, 0, 1, 1]


def test_a_retry_is_apart_though_the_first_try_never_said_a_word_on_its_main_channel() -> None:
    net = Net()
    silent, _ = net.connect()
    first = net.begin(CHANNEL_HEAD)
    for lane in (silent, first):
        net.directory.end(lane)
    assert [first.migration, net.begin(CHANNEL_HEAD).migration, net.begin(MAIN_HEAD).migration] == [0, 1, 1]


def test_a_retry_is_apart_when_the_target_closed_what_the_source_left_open() -> None:
    net = Net()
    first = [net.begin(MAIN_HEAD), net.begin(CHANNEL_HEAD)]
    net.directory.end(first[0])
    assert first[1].peer is not None
    net.directory.end(first[1].peer)
    early = net.begin(CHANNEL_HEAD)
    net.directory.end(first[1])
    assert [early.migration, net.begin(MAIN_HEAD).migration] == [1, 1]


def test_a_second_main_channel_begins_another_migration() -> None:
    net = Net()
    assert [net.begin(MAIN_HEAD).migration, net.begin(MAIN_HEAD).migration] == [0, 1]


def test_another_protocol_on_the_targets_address_belongs_to_it_and_elsewhere_to_none() -> None:
    net = Net()
    early = net.begin(b"GET ")
    net.begin(MAIN_HEAD)
    late, elsewhere = net.begin(b"POST"), net.begin(b"SSH-", 22)
    assert (early.migration, late.migration, elsewhere.migration) == (0, 0, None)
    assert all(lane.foreign for lane in (early, late, elsewhere))


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("known", [MAIN_HEAD, CHANNEL_HEAD])
def test_a_connection_that_broke_inside_its_first_bytes_is_no_other_protocol(known: bytes, size: int) -> None:
    net = Net()
    net.begin(MAIN_HEAD)
    cut = net.begin(known[:size])
    assert (cut.role, cut.migration, cut.foreign) == (Role.NONE, 0, False)
    assert cut.why == f"too short to tell: it ended after {size} bytes"
    other = net.begin(known[: size - 1] + b"\0")
    assert other.foreign


def test_two_migrations_in_one_capture_are_judged_each_on_its_own(tmp_path: Path) -> None:
    path = tmp_path / "two.pcapng"
    out = PcapngWriter(path, ["both"])
    one, other = good(journals=False), good(journals=False)
    other.port = 5555
    other.drop("vf1.0")
    one.write_to(out)
    other.write_to(out)
    out.close()
    report = check_path(path)
    assert report.exercised.migrations == 2
    assert report.channels == 4
    assert [row.id for row in report.devices] == [row.id for row in report.devices[:2]] * 2
    assert {v.id for v in report.violations} == {"DS-10"}
    assert all("5555" in w.flow for v in report.violations for w in v.witnesses)


def test_a_capture_without_a_migration_says_so(tmp_path: Path) -> None:
    path = tmp_path / "web.pcapng"
    script = good(journals=False)
    script.pieces[:] = script.pieces[:1]
    script.find("header").data = b"GET / HTTP/1.1\r\n\r\n"
    script.write_capture(path)
    report = check_path(path)
    assert report.standing is Standing.UNKNOWN
    assert report.exit_code == 5
    assert any("no migration" in u.why for u in report.unknown)
    (flow, _) = report.exercised.accounting[0].flows
    assert flow.undecodable_bytes == flow.total_bytes == 18
    assert "another protocol" in flow.why
    assert good().find("header").where == MAIN
