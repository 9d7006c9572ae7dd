# SPDX-License-Identifier: GPL-2.0-or-later
"""SendPlan and LoadPlan with channels between them: whatever is slow, all bytes arrive once and in order."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant

from mockdev.errors import RemoteProtocolError
from mockdev.multifd.assembly import Buffer
from mockdev.multifd.receiver import LoadJob, LoadPlan
from mockdev.multifd.sender import RamPacket, SendPlan, SendRam, SendSync
from tests.machines import Machine


class Sent(NamedTuple):
    """A buffer on a channel."""

    device: int
    idx: int
    data: bytes
    last: bool


class Page(NamedTuple):
    """A RAM packet on a channel, by the number under which it was queued."""

    number: int


class Sync(NamedTuple):
    """A SYNC on a channel."""


class Pair(Machine):
    """Channels send, connections deliver, loaders load: in any order. A device's state is cut at will.

    lazy: at the end loaders go on when nobody else can, not first. None of the numbers that end up on the
    wire is computed here: bytes are compared with the bytes that were read.
    """

    @initialize(
        channels=st.integers(1, 4),
        states=st.lists(st.lists(st.sampled_from((0, 5, 10)), max_size=5), min_size=1, max_size=3),
        in_flight=st.integers(1, 4),
        cap=st.none() | st.sampled_from((10, 13, 15, 18, 20, 23, 25, 9, 12, 14, 17)),
        lazy=st.booleans(),
    )
    def make(
        self, channels: int, states: list[list[int]], in_flight: int, cap: int | None, lazy: bool
    ) -> None:
        """states: sizes of each device's buffers; one of 3 bytes, its config, follows."""
        names = [f"vf{number}" for number in range(len(states))]
        self.sender = SendPlan(names, channels, in_flight_max=in_flight, ram_queued_max=4)
        self.receiver: LoadPlan[bytes] = LoadPlan(names, cap)
        self.cap = cap
        self.lazy = lazy
        self.states: list[list[bytes]] = []
        for device, sizes in enumerate(states):
            buffers = [(bytes((device, at)) * 20)[:size] for at, size in enumerate(sizes)]
            self.states.append([*buffers, b"cfg"])
        self.read = [0] * len(states)
        self.paused: set[int] = set()
        self.wires: list[deque[Sent | Page | Sync]] = [deque() for _ in range(channels)]
        self.arriving: dict[int, Sent] = {}  # of each connection, the buffer whose heads have come
        self.sending: dict[int, Sent | Page | Sync] = {}
        self.announced: list[set[int]] = [set() for _ in states]
        self.jobs: dict[int, LoadJob[bytes]] = {}
        self.queued = [0] * len(states)
        self.loaded: list[list[bytes]] = [[] for _ in states]
        self.queued_pages = 0
        self.barriers: list[int] = []  # pages queued before each SYNC that was asked for
        self.came_pages: list[int] = []
        self.came_syncs = [0] * channels
        self.failed = False
        for device in range(len(states)):
            self.sender.readable(device)

    def possible(self) -> list[str]:
        steps = ["a_channel_goes_on"] * 3
        steps += ["a_connection_delivers"] * 3 * (any(self.wires) or bool(self.arriving))
        steps += ["a_loader_goes_on"] * 2
        steps += ["a_device_goes_on"] * bool(self.paused)
        steps += ["pages_are_queued"] * self.sender.synced
        steps += ["loading_begins"] * 2 * (not self.receiver.started)
        return steps

    # -- one step of each part -----------------------------------------------------------------------

    def send(self, channel: int, *, pauses: bool = False) -> bool:
        """An idle channel takes work; a busy one has written. pauses: a device it reads has nothing yet."""
        if (sent := self.sending.pop(channel, None)) is not None:
            self.wires[channel].append(sent)
            self.sender.written(channel)
            return True
        work = self.sender.take(channel)
        if work is None:
            return False
        if isinstance(work, SendRam):
            self.sending[channel] = Page(*work.packet.normal)
        elif isinstance(work, SendSync):
            self.sending[channel] = Sync()
        elif pauses:
            self.sender.pause(channel)
            self.paused.add(work.device)
        else:
            buffers, at = self.states[work.device], self.read[work.device]
            self.read[work.device] += 1
            last = at + 1 == len(buffers)
            idx = self.sender.claim(channel, last=last)
            self.sending[channel] = Sent(work.device, idx, buffers[at], last)
        return True

    def deliver(self, channel: int) -> bool:
        """The next of a connection arrives: of a buffer, first the heads, then the rest."""
        if self.failed:
            return False
        if (sent := self.arriving.pop(channel, None)) is not None:
            self.receive(sent)
            return True
        if not self.wires[channel]:
            return False
        item = self.wires[channel].popleft()
        if isinstance(item, Page):
            self.came_pages.append(item.number)
        elif isinstance(item, Sync):
            self.came_syncs[channel] += 1
            whole = min(self.came_syncs)
            if whole and self.came_syncs[channel] == whole:  # this SYNC has come everywhere
                assert set(self.came_pages) >= set(range(self.barriers[whole - 1]))
        else:
            self.announce(item)
            self.arriving[channel] = item
        return True

    def announce(self, sent: Sent) -> None:
        known, buffers = self.announced[sent.device], self.states[sent.device]
        start = self.receiver.announce(sent.device, sent.idx, len(sent.data), config=sent.last)
        assert (start is None) == (len([idx for idx in known if idx < sent.idx]) < sent.idx)
        if start is not None:
            assert b"".join(buffers)[start:].startswith(sent.data)
            assert start == sum(map(len, buffers[: sent.idx]))
        known.add(sent.idx)

    def receive(self, sent: Sent) -> None:
        device, size = sent.device, len(sent.data)
        buffer = Buffer(sent.idx, size, sent.last, sent.data)
        queued = self.queued[device] + size
        if self.cap is not None and queued > self.cap:
            with pytest.raises(RemoteProtocolError, match="over the cap"):
                self.receiver.received(device, buffer)
            self.failed = True  # and that is the end of this migration
            return
        assert self.receiver.received(device, buffer) == queued
        self.queued[device] = queued

    def load(self, device: int | None) -> bool:
        """The loader of a device ends, or one begins: for that device, or for any."""
        job = None if device is None else self.jobs.pop(device, None)
        if job is None:
            job = self.receiver.take(device)
            if job is not None:
                assert self.receiver.started
                assert job.device not in self.jobs, "one loader at a time"
                self.jobs[job.device] = job
            return job is not None
        assert device is not None
        self.queued[device] -= job.buffer.size
        assert self.receiver.written(job) == self.queued[device]
        self.receiver.loaded(job)
        self.loaded[device].append(job.buffer.data)
        return True

    # -- steps ---------------------------------------------------------------------------------------

    def a_channel_goes_on(self, data: st.DataObject) -> None:
        channel = data.draw(st.integers(0, len(self.wires) - 1))
        self.send(channel, pauses=data.draw(st.integers(0, 3)) == 1)

    def a_connection_delivers(self, data: st.DataObject) -> None:
        able = [number for number, wire in enumerate(self.wires) if wire or number in self.arriving]
        self.deliver(data.draw(st.sampled_from(able)))

    def a_loader_goes_on(self, data: st.DataObject) -> None:
        self.load(data.draw(st.integers(0, len(self.states) - 1) | st.none()))

    def a_device_goes_on(self, data: st.DataObject) -> None:
        device = data.draw(st.sampled_from(sorted(self.paused)))
        self.paused.remove(device)
        self.sender.readable(device)

    def pages_are_queued(self, data: st.DataObject) -> None:
        """As many as there is room for, and a SYNC behind them."""
        for _ in range(data.draw(st.integers(0, 3))):
            packet = RamPacket("pc.ram", (self.queued_pages,), ())
            self.queued_pages += self.sender.queue_ram(packet)
        self.sender.request_sync()
        self.barriers.append(self.queued_pages)

    def loading_begins(self, _data: st.DataObject) -> None:
        self.receiver.start()

    # -- at all times, and at the end ----------------------------------------------------------------

    @invariant()
    def what_is_loaded_is_the_beginning_of_the_state(self) -> None:
        for state, loaded in zip(self.states, self.loaded, strict=True):
            assert state[: len(loaded)] == loaded

    @invariant()
    def complete_exactly_when_all_is_loaded(self) -> None:
        assert self.receiver.complete == (self.loaded == self.states)
        assert self.sender.devices_sent == ([*map(len, self.states)] == self.read)

    @invariant()
    def a_cap_is_never_passed(self) -> None:
        for device, queued in enumerate(self.queued):
            assert queued <= self.receiver.queued_max(device) <= (self.cap or 1000)

    def finish(self) -> None:
        """However it stands: if everybody goes on, it completes, unless a cap ended it."""
        if not self.receiver.started:
            self.receiver.start()
        for device in sorted(self.paused):
            self.sender.readable(device)
        self.paused.clear()
        channels, devices = range(len(self.wires)), range(len(self.states))
        order = [(self.load, devices), (self.deliver, channels), (self.send, channels)]
        if self.lazy:
            order.reverse()
        while any(any(step(number) for number in numbers) for step, numbers in order):
            self.what_is_loaded_is_the_beginning_of_the_state()
            self.a_cap_is_never_passed()
        assert self.failed or self.loaded == self.states
        self.complete_exactly_when_all_is_loaded()
        if not self.failed:
            assert sorted(self.came_pages) == [*range(self.queued_pages)]
            assert self.came_syncs == [len(self.barriers)] * len(self.wires)


TestPair = Pair.TestCase
