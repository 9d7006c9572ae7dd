# SPDX-License-Identifier: GPL-2.0-or-later
"""SendPlan: indices without gaps in the order of the reads, SYNCs after their pages, nobody starved."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant

from mockdev.errors import LocalProtocolError
from mockdev.multifd.sender import RamPacket, ReadDevice, SendPlan, SendRam, SendSync, Work
from tests.machines import Machine

PACKET = RamPacket("pc.ram", (0,), ())


class Sending(Machine):
    """Channels that work at any speed on RAM, SYNCs and devices that pause, held to what they owe each other.

    No order is computed here: what is given out is looked at, and what is not.
    """

    @initialize(channels=st.integers(1, 4), devices=st.integers(0, 3), in_flight=st.integers(1, 4))
    def make(self, channels: int, devices: int, in_flight: int) -> None:
        self.channels = channels
        self.devices = devices
        self.in_flight = in_flight
        names = [f"vf{number}" for number in range(devices)]
        self.plan = SendPlan(names, channels, in_flight_max=in_flight, ram_queued_max=3)
        self.closed = set(range(devices))  # may become readable
        self.waits: dict[int, int] = {}  # readable devices: how many turns others have had since
        self.claimed: list[list[int]] = [[] for _ in names]
        self.ended: set[int] = set()
        self.busy: dict[int, Work] = {}
        self.reading: dict[int, int] = {}  # devices of channels whose turn gave nothing yet
        self.ram: deque[RamPacket] = deque()
        self.sync_owed: set[int] = set()  # channels that have still to be given their SYNC
        self.sync_unwritten = 0
        self.numbers = 0

    def possible(self) -> list[str]:
        steps = ["queue_ram", "request_sync"]
        steps += ["readable"] * bool(self.closed)
        steps += ["take"] * 2 * (len(self.busy) < self.channels)
        steps += ["end_turn"] * 2 * bool(self.reading)
        steps += ["written"] * bool(self.busy.keys() - self.reading.keys())
        return steps

    # -- the owners of RAM and devices ---------------------------------------------------------------

    def queue_ram(self, data: st.DataObject) -> None:
        packet = RamPacket("pc.ram", (4096 * data.draw(st.integers(0, 9)),), ())
        if len(self.ram) == 3:
            assert not self.plan.queue_ram(packet)
        elif self.sync_unwritten:
            with pytest.raises(LocalProtocolError):
                self.plan.queue_ram(packet)
        else:
            assert self.plan.queue_ram(packet)
            self.ram.append(packet)

    def request_sync(self, _data: st.DataObject) -> None:
        if self.sync_unwritten:
            with pytest.raises(LocalProtocolError):
                self.plan.request_sync()
            return
        self.plan.request_sync()
        self.sync_owed = set(range(self.channels))
        self.sync_unwritten = self.channels

    def readable(self, data: st.DataObject) -> None:
        device = data.draw(st.sampled_from(sorted(self.closed)))
        self.plan.readable(device)
        self.closed.remove(device)
        self.waits[device] = 0

    # -- channels ------------------------------------------------------------------------------------

    @property
    def may_read(self) -> bool:
        sending = sum(isinstance(work, ReadDevice) for work in self.busy.values())
        return bool(self.waits) and sending < self.in_flight

    def take(self, data: st.DataObject) -> None:
        self.take_by(data.draw(st.sampled_from(sorted(set(range(self.channels)) - set(self.busy)))))

    def take_by(self, channel: int) -> bool:
        """Whether there was work."""
        could = self.plan.has_work
        work = self.plan.take(channel)
        if work is None:
            assert not self.ram
            assert channel not in self.sync_owed
            assert not self.may_read
            return False
        assert could
        if isinstance(work, SendRam):
            assert work.packet is self.ram.popleft()
        elif isinstance(work, SendSync):
            assert not self.ram, "a SYNC follows all pages that were queued before it"
            self.sync_owed.remove(channel)
        else:
            assert not self.ram
            assert channel not in self.sync_owed
            assert self.may_read
            assert self.waits.pop(work.device) < self.devices, "each of the others has had its turn"
            self.waits = {device: turns + 1 for device, turns in self.waits.items()}
            self.reading[channel] = work.device
        self.busy[channel] = work
        if not isinstance(work, ReadDevice):
            assert work.packet_num == self.numbers
            self.numbers += 1
        return True

    def end_turn(self, data: st.DataObject) -> None:
        channel = data.draw(st.sampled_from(sorted(self.reading)))
        self.give(channel, data.draw(st.sampled_from(("buffer", "nothing", "buffer", "last"))))

    def give(self, channel: int, gives: str) -> None:
        device = self.reading.pop(channel)
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
            self.waits[device] = 0

    def written(self, data: st.DataObject) -> None:
        self.written_by(data.draw(st.sampled_from(sorted(self.busy.keys() - self.reading.keys()))))

    def written_by(self, channel: int) -> None:
        self.plan.written(channel)
        self.sync_unwritten -= isinstance(self.busy.pop(channel), SendSync)

    # -- at all times, and at the end ----------------------------------------------------------------

    @invariant()
    def the_plan_says_what_was_done(self) -> None:
        plan = self.plan
        assert plan.synced == (self.sync_unwritten == 0)
        assert plan.devices_sent == (len(self.ended) == self.devices)
        assert {device for device in range(self.devices) if plan.has_ended(device)} == self.ended

    @invariant()
    def one_channel_reads_a_device_at_a_time(self) -> None:
        assert len(self.reading) == len(set(self.reading.values()))

    def finish(self) -> None:
        """However it stands: if everybody goes on, all that was asked for is sent."""
        for device in sorted(self.closed):
            self.plan.readable(device)
            self.waits[device] = 0
        self.closed.clear()
        moved = True
        while moved:
            for channel in sorted(self.busy):
                if channel in self.reading:
                    self.give(channel, "last")
                self.written_by(channel)
            moved = any(map(self.take_by, range(self.channels)))
        assert not self.ram
        assert not self.sync_owed
        assert self.plan.synced
        assert self.plan.devices_sent
        assert not self.plan.has_work


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


def test_no_more_buffers_are_sent_at_once_than_may_be() -> None:
    plan = SendPlan(("a", "b", "c", "d"), 4, in_flight_max=2)
    for device in range(4):
        plan.readable(device)
    for channel in (0, 1):
        assert plan.take(channel) == ReadDevice(channel)
        plan.claim(channel)
    assert not plan.has_work
    assert plan.take(2) is None
    plan.written(0)
    assert plan.take(2) == ReadDevice(2)
    plan.pause(2)  # a turn that gave nothing counts no longer
    assert plan.take(3) == ReadDevice(3)
    assert plan.take(0) is None


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
