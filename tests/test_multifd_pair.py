# SPDX-License-Identifier: GPL-2.0-or-later
"""SendPlan and LoadPlan with channels between them: whatever is slow, all bytes arrive once and in order."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mockdev.errors import RemoteProtocolError
from mockdev.multifd.assembly import Buffer
from mockdev.multifd.receiver import LoadJob, LoadPlan
from mockdev.multifd.sender import ReadDevice, SendPlan


class Sent(NamedTuple):
    """A buffer on a channel."""

    device: int
    idx: int
    data: bytes
    last: bool


class Pair(RuleBasedStateMachine):
    """Channels send, connections deliver, loaders load: in any order. A device's state is cut at will."""

    @initialize(
        channels=st.integers(1, 4),
        states=st.lists(st.lists(st.sampled_from((0, 5, 10)), max_size=5), min_size=1, max_size=3),
        in_flight=st.integers(1, 4),
        cap=st.sampled_from((10, 15, 20, 25, 9, 14, 19, 24, None)),
    )
    def make(self, channels: int, states: list[list[int]], in_flight: int, cap: int | None) -> None:
        """states: sizes of each device's buffers; one of 3 bytes, its config, follows."""
        names = [f"vf{number}" for number in range(len(states))]
        self.sender = SendPlan(names, channels, in_flight_max=in_flight)
        self.receiver: LoadPlan[bytes] = LoadPlan(names, cap)
        self.cap = cap
        self.states = [
            [bytes((device, at)) * 20 for at in range(len(sizes))] for device, sizes in enumerate(states)
        ]
        for device, sizes in enumerate(states):
            self.states[device] = [data[:size] for data, size in zip(self.states[device], sizes, strict=True)]
            self.states[device].append(b"cfg")
        self.read = [0] * len(states)
        self.wires: list[deque[Sent]] = [deque() for _ in range(channels)]
        self.sending: dict[int, Sent] = {}
        self.jobs: dict[int, LoadJob[bytes]] = {}
        self.queued = [0] * len(states)
        self.loaded: list[list[bytes]] = [[] for _ in states]
        self.failed = False
        for device in range(len(states)):
            self.sender.readable(device)

    # -- one step of each part -----------------------------------------------------------------------

    def send(self, channel: int) -> bool:
        """An idle channel takes a turn and claims; a busy one has written."""
        if (sent := self.sending.pop(channel, None)) is not None:
            self.wires[channel].append(sent)
            self.sender.written(channel)
            return True
        work = self.sender.take(channel)
        if work is None:
            return False
        assert isinstance(work, ReadDevice)
        device = work.device
        buffers = self.states[device]
        data = buffers[self.read[device]]
        self.read[device] += 1
        last = self.read[device] == len(buffers)
        self.sending[channel] = Sent(device, self.sender.claim(channel, last=last), data, last)
        return True

    def deliver(self, channel: int) -> bool:
        """The next buffer of a connection arrives."""
        if not self.wires[channel] or self.failed:
            return False
        sent = self.wires[channel].popleft()
        device, size = sent.device, len(sent.data)
        self.receiver.announce(device, sent.idx, size, config=sent.last)
        buffer = Buffer(sent.idx, size, sent.last, sent.data)
        queued = self.queued[device] + size
        if self.cap is not None and queued > self.cap:
            with pytest.raises(RemoteProtocolError, match="over the cap"):
                self.receiver.received(device, buffer)
            self.failed = True  # and that is the end of this migration
            return False
        assert self.receiver.received(device, buffer) == queued
        self.queued[device] = queued
        return True

    def load(self, device: int) -> bool:
        """A loader begins or ends."""
        job = self.jobs.pop(device, None)
        if job is None:
            job = self.receiver.take(device)
            if job is not None:
                self.jobs[device] = job
            return job is not None
        self.queued[device] -= job.buffer.size
        assert self.receiver.written(job) == self.queued[device]
        self.receiver.loaded(job)
        self.loaded[device].append(job.buffer.data)
        return True

    # -- rules ---------------------------------------------------------------------------------------

    @rule(data=st.data())
    def a_channel_goes_on(self, data: st.DataObject) -> None:
        self.send(data.draw(st.integers(0, len(self.wires) - 1)))

    @rule(data=st.data())
    def a_connection_delivers(self, data: st.DataObject) -> None:
        self.deliver(data.draw(st.integers(0, len(self.wires) - 1)))

    @rule(data=st.data())
    def a_loader_goes_on(self, data: st.DataObject) -> None:
        self.load(data.draw(st.integers(0, len(self.states) - 1)))

    @precondition(lambda self: not self.receiver.started)
    @rule()
    def loading_begins(self) -> None:
        self.receiver.start()

    # -- at all times, and at the end ----------------------------------------------------------------

    @invariant()
    def what_is_loaded_is_the_beginning_of_the_state(self) -> None:
        for state, loaded in zip(getattr(self, "states", ()), getattr(self, "loaded", ()), strict=True):
            assert state[: len(loaded)] == loaded

    @invariant()
    def complete_exactly_when_all_is_loaded(self) -> None:
        if hasattr(self, "states"):
            assert self.receiver.complete == (self.loaded == self.states)
            assert self.sender.devices_sent == ([*map(len, self.states)] == self.read)

    @invariant()
    def a_cap_is_never_passed(self) -> None:
        cap: int | None = getattr(self, "cap", None)
        if cap is not None:
            assert all(self.receiver.queued_max(device) <= cap for device in range(len(self.states)))

    def teardown(self) -> None:
        """However it stands: if everybody goes on, it completes, unless a cap ended it."""
        if not hasattr(self, "states"):
            return
        if not self.receiver.started:
            self.receiver.start()
        channels, devices = range(len(self.wires)), range(len(self.states))
        while True:  # loaders first, so that the queues stay short
            moved = any(map(self.load, devices)) or any(map(self.deliver, channels))
            if not moved and not any(map(self.send, channels)):
                break
        assert self.failed or self.loaded == self.states
        self.complete_exactly_when_all_is_loaded()


TestPair = Pair.TestCase
