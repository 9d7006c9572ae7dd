# SPDX-License-Identifier: GPL-2.0-or-later
"""SendPlan: indices without gaps in the order of the reads, SYNCs after their pages, nobody starved."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mockdev.errors import LocalProtocolError
from mockdev.multifd.sender import RamPacket, ReadDevice, SendPlan, SendRam, SendSync, Work

PACKET = RamPacket("pc.ram", (0,), ())


class Sending(RuleBasedStateMachine):
    """Channels that work at any speed on RAM, SYNCs and devices that pause, beside the plainest model."""

    @initialize(channels=st.integers(1, 4), devices=st.integers(0, 3), in_flight=st.integers(1, 4))
    def make(self, channels: int, devices: int, in_flight: int) -> None:
        self.channels = channels
        self.in_flight = in_flight
        names = [f"vf{number}" for number in range(devices)]
        self.plan = SendPlan(names, channels, in_flight_max=in_flight, ram_queued_max=3)
        self.closed = set(range(devices))  # may become readable
        self.turns: list[int] = []  # devices whose next buffer may be read, in order
        self.claimed: list[list[int]] = [[] for _ in names]
        self.ended: set[int] = set()
        self.busy: dict[int, Work] = {}
        self.reading: set[int] = set()  # channels with a turn that gave nothing yet
        self.ram: list[RamPacket] = []
        self.sync_left: set[int] = set()  # channels that have still to be given their SYNC
        self.sync_unwritten = 0
        self.numbers = 0

    # -- the owners of RAM and devices ---------------------------------------------------------------

    @rule(page=st.integers(0, 9))
    def queue_ram(self, page: int) -> None:
        packet = RamPacket("pc.ram", (4096 * page,), ())
        if len(self.ram) == 3:
            assert not self.plan.queue_ram(packet)
        elif self.sync_unwritten:
            with pytest.raises(LocalProtocolError):
                self.plan.queue_ram(packet)
        else:
            assert self.plan.queue_ram(packet)
            self.ram.append(packet)

    @rule()
    def request_sync(self) -> None:
        if self.sync_unwritten:
            with pytest.raises(LocalProtocolError):
                self.plan.request_sync()
            return
        self.plan.request_sync()
        self.sync_left = set(range(self.channels))
        self.sync_unwritten = self.channels

    @precondition(lambda self: self.closed)
    @rule(data=st.data())
    def readable(self, data: st.DataObject) -> None:
        device = data.draw(st.sampled_from(sorted(self.closed)))
        self.plan.readable(device)
        self.closed.remove(device)
        self.turns.append(device)

    # -- channels ------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.busy) < self.channels)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        channel = data.draw(st.sampled_from(sorted(set(range(self.channels)) - set(self.busy))))
        sending = sum(isinstance(work, ReadDevice) for work in self.busy.values())
        expected: Work | None = None
        if self.ram:  # a SYNC follows all pages that were queued before it
            expected = SendRam(self.numbers, self.ram.pop(0))
        elif channel in self.sync_left:
            self.sync_left.remove(channel)
            expected = SendSync(self.numbers)
        elif self.turns and sending < self.in_flight:
            expected = ReadDevice(self.turns.pop(0))
            self.reading.add(channel)
        assert self.plan.take(channel) == expected
        if expected is not None:
            self.busy[channel] = expected
            self.numbers += not isinstance(expected, ReadDevice)

    @precondition(lambda self: self.reading)
    @rule(data=st.data(), gives=st.sampled_from(("buffer", "last", "nothing")))
    def end_turn(self, data: st.DataObject, gives: str) -> None:
        self.give(data.draw(st.sampled_from(sorted(self.reading))), gives)

    def give(self, channel: int, gives: str) -> None:
        self.reading.remove(channel)
        work = self.busy[channel]
        assert isinstance(work, ReadDevice)
        device = work.device
        if gives == "nothing":
            self.plan.pause(channel)
            del self.busy[channel]
            self.closed.add(device)
            return
        claimed = self.claimed[device]
        assert self.plan.next_idx(device) == len(claimed)
        claimed.append(self.plan.claim(channel, last=gives == "last"))
        assert claimed == list(range(len(claimed)))  # no gap, in the order of the reads
        if gives == "last":
            self.ended.add(device)
        else:
            self.turns.append(device)

    @precondition(lambda self: set(self.busy) - self.reading)
    @rule(data=st.data())
    def written(self, data: st.DataObject) -> None:
        self.written_by(data.draw(st.sampled_from(sorted(set(self.busy) - self.reading))))

    def written_by(self, channel: int) -> None:
        self.plan.written(channel)
        self.sync_unwritten -= isinstance(self.busy.pop(channel), SendSync)

    @precondition(lambda self: len(self.busy) < self.channels)
    @rule(data=st.data())
    def go_on_quickly(self, data: st.DataObject) -> None:
        """A channel that takes work, does it and has written it before anybody else moves."""
        before = set(self.busy)
        self.take(data)
        for channel in set(self.busy) - before:
            if channel in self.reading:
                self.give(channel, "buffer")
            self.written_by(channel)

    # -- at all times --------------------------------------------------------------------------------

    @invariant()
    def the_plan_says_what_the_model_knows(self) -> None:
        if not hasattr(self, "plan"):
            return
        plan = self.plan
        assert plan.synced == (self.sync_unwritten == 0)
        assert plan.devices_sent == (len(self.ended) == len(self.claimed))
        assert [plan.has_ended(device) for device in range(len(self.claimed))] == [
            device in self.ended for device in range(len(self.claimed))
        ]
        sending = sum(isinstance(work, ReadDevice) for work in self.busy.values())
        assert plan.has_work == bool(self.ram or self.sync_left or (self.turns and sending < self.in_flight))

    @invariant()
    def one_channel_reads_a_device_at_a_time(self) -> None:
        turns = [self.busy[channel] for channel in getattr(self, "reading", ())]
        assert len(turns) == len(set(turns))


TestSending = Sending.TestCase


def test_pages_and_syncs_go_before_devices() -> None:
    plan = SendPlan(("vf0",), 1)
    plan.readable(0)
    plan.queue_ram(PACKET)
    plan.request_sync()
    kinds = []
    for _ in range(3):
        work = plan.take(0)
        kinds.append(type(work))
        if isinstance(work, ReadDevice):
            plan.claim(0)
        plan.written(0)
    assert kinds == [SendRam, SendSync, ReadDevice]


def test_devices_take_turns() -> None:
    plan = SendPlan(("a", "b", "c"), 1)
    for device in range(3):
        plan.readable(device)
    order = []
    for _ in range(9):
        work = plan.take(0)
        assert isinstance(work, ReadDevice)
        order.append(work.device)
        plan.claim(0)
        plan.written(0)
    assert order == [0, 1, 2] * 3


def test_ram_waits_at_its_limit() -> None:
    plan = SendPlan((), 1, ram_queued_max=2)
    assert plan.queue_ram(PACKET)
    assert plan.queue_ram(PACKET)
    assert not plan.queue_ram(PACKET)
    plan.take(0)
    assert plan.queue_ram(PACKET)


def test_misuse_is_told() -> None:
    plan = SendPlan(("vf0",), 2)
    with pytest.raises(LocalProtocolError, match="no device's turn"):
        plan.claim(0)
    plan.readable(0)
    with pytest.raises(LocalProtocolError, match="became readable"):
        plan.readable(0)
    plan.take(0)
    with pytest.raises(LocalProtocolError, match="asks for work"):
        plan.take(0)
    assert plan.take(1) is None
    plan.claim(0, last=True)
    with pytest.raises(LocalProtocolError, match="no device's turn"):
        plan.claim(0)
    with pytest.raises(LocalProtocolError, match="became readable"):
        plan.readable(0)
