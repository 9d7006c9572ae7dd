# SPDX-License-Identifier: GPL-2.0-or-later
"""LoadPlan: whatever the interleaving of channels, each device loads in order and by one loader at a time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mockdev.errors import LocalProtocolError, RemoteProtocolError
from mockdev.multifd.assembly import Buffer
from mockdev.multifd.receiver import LoadJob, LoadPlan

DEVICES = ("vf0", "vf1", "vf2")
LAST = 6


class Loading(RuleBasedStateMachine):
    """Buffers of three devices in any order; loads begin and end at any time, several at once.

    cap: what a device may have queued, config buffer included; over it nothing is taken, not even by a hair.
    """

    @initialize(cap=st.none() | st.integers(LAST + 1, 2 * LAST))
    def make(self, cap: int | None) -> None:
        self.cap = cap
        self.plan: LoadPlan[None] = LoadPlan(DEVICES, cap)
        self.left = {(d, idx) for d in range(len(DEVICES)) for idx in range(LAST + 1)}
        self.jobs: dict[int, LoadJob[None]] = {}
        self.loaded: list[list[int]] = [[] for _ in DEVICES]
        self.sizes = [0] * len(DEVICES)
        self.most = [0] * len(DEVICES)
        self.announced: set[tuple[int, int]] = set()

    @precondition(lambda self: self.left - self.announced)
    @rule(data=st.data())
    def announce(self, data: st.DataObject) -> None:
        device, idx = data.draw(st.sampled_from(sorted(self.left - self.announced)))
        start = self.plan.announce(device, idx, idx + 1, config=idx == LAST)
        before = [(device, i) in self.announced or (device, i) not in self.left for i in range(idx)]
        assert start == (sum(range(1, idx + 1)) if all(before) else None)
        self.announced.add((device, idx))

    @precondition(lambda self: self.left)
    @rule(data=st.data())
    def receive(self, data: st.DataObject) -> None:
        device, idx = data.draw(st.sampled_from(sorted(self.left)))
        if (device, idx) not in self.announced:
            self.plan.announce(device, idx, idx + 1, config=idx == LAST)
            self.announced.add((device, idx))
        buffer: Buffer[None] = Buffer(idx, idx + 1, idx == LAST, None)
        queued = self.sizes[device] + idx + 1
        if self.cap is not None and queued > self.cap:
            with pytest.raises(RemoteProtocolError, match=f"to {queued}, over the cap of {self.cap}"):
                self.plan.received(device, buffer)
            return  # as if it had not come
        self.left.remove((device, idx))
        self.sizes[device] = queued
        self.most[device] = max(self.most[device], queued)
        assert self.plan.received(device, buffer) == queued
        assert self.plan.queued_max(device) == self.most[device]

    @precondition(lambda self: len(self.left) < len(DEVICES) * (LAST + 1))
    @rule(data=st.data())
    def come_again(self, data: st.DataObject) -> None:
        came = {(d, idx) for d in range(len(DEVICES)) for idx in range(LAST + 1)} - self.left
        device, idx = data.draw(st.sampled_from(sorted(came)))
        with pytest.raises(RemoteProtocolError, match=f"buffer {idx} came a second time"):
            self.plan.announce(device, idx, idx + 1, config=idx == LAST)

    @rule()
    def start(self) -> None:
        if self.plan.started:
            with pytest.raises(RemoteProtocolError, match="second time"):
                self.plan.start()
        else:
            self.plan.start()

    @rule(device=st.none() | st.integers(0, len(DEVICES) - 1))
    def take(self, device: int | None) -> None:
        could = [number for number in range(len(DEVICES)) if self.could_load(number)]
        job = self.plan.take(device)
        assert (job is not None) == bool(could if device is None else device in could)
        if job is None:
            return
        assert job.device in could
        assert device in (None, job.device)
        assert job.buffer.idx == len(self.loaded[job.device])
        self.jobs[job.device] = job

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def end_load(self, data: st.DataObject) -> None:
        job = self.jobs.pop(data.draw(st.sampled_from(sorted(self.jobs))))
        self.sizes[job.device] -= job.buffer.size
        assert self.plan.written(job) == self.sizes[job.device]
        self.plan.loaded(job)
        self.loaded[job.device].append(job.buffer.idx)

    def could_load(self, device: int) -> bool:
        """Whether that device's next buffer is here and nobody loads one."""
        following = len(self.loaded[device])
        here = following <= LAST and (device, following) not in self.left
        return self.plan.started and device not in self.jobs and here

    @invariant()
    def complete_exactly_when_all_is_loaded(self) -> None:
        if not hasattr(self, "plan"):
            return
        everything = all(len(done) == LAST + 1 for done in self.loaded)
        assert self.plan.complete == everything
        assert (self.plan.missing() == "") == all(
            len(done) + (device in self.jobs) == LAST + 1 for device, done in enumerate(self.loaded)
        )

    @invariant()
    def something_can_be_loaded_if_it_is_next(self) -> None:
        if hasattr(self, "plan"):
            could = any(map(self.could_load, range(len(DEVICES))))
            assert self.plan.can_load == bool(self.jobs or could)


TestLoading = Loading.TestCase


@given(st.permutations([(d, i) for d in range(2) for i in range(8)]), st.integers(0, 16))
def test_what_came_before_the_start_is_kept(order: list[tuple[int, int]], start_at: int) -> None:
    plan: LoadPlan[None] = LoadPlan(("a", "b"))
    loaded: list[tuple[int, int]] = []
    for at, (device, idx) in enumerate([*order, (-1, -1)]):
        if at == start_at:
            plan.start()
        if device >= 0:
            plan.received(device, Buffer(idx, 1, idx == 7, None))
        while (job := plan.take()) is not None:
            assert at >= start_at
            loaded.append((job.device, job.buffer.idx))
            plan.written(job)
            plan.loaded(job)
    for device in range(2):
        assert [idx for d, idx in loaded if d == device] == list(range(8))


def test_a_second_start_is_refused() -> None:
    plan: LoadPlan[None] = LoadPlan(DEVICES)
    plan.start()
    with pytest.raises(RemoteProtocolError, match="second time"):
        plan.start()


def test_over_the_cap_nothing_is_kept() -> None:
    plan: LoadPlan[None] = LoadPlan(("vf0",), cap=20)
    plan.received(0, Buffer(1, 20, False, None))
    with pytest.raises(RemoteProtocolError, match="buffer 2 of vf0"):
        plan.received(0, Buffer(2, 1, False, None))
    with pytest.raises(RemoteProtocolError, match="buffer 0 of vf0"):  # QEMU too: the cap is no way out
        plan.received(0, Buffer(0, 1, False, None))
    assert plan.queued_max(0) == 20
    assert "buffer 0" in plan.missing()


def test_only_the_loader_may_say_loaded() -> None:
    plan: LoadPlan[None] = LoadPlan(("vf0",))
    plan.start()
    other = Buffer(0, 5, False, None)
    plan.received(0, other)
    with pytest.raises(LocalProtocolError):
        plan.loaded(LoadJob(0, other))


def test_a_place_in_the_stream_is_known_when_all_before_are_announced() -> None:
    plan: LoadPlan[None] = LoadPlan(("vf0",))
    assert plan.announce(0, 2, 30, config=False) is None
    assert plan.announce(0, 0, 10, config=False) == 0
    assert plan.announce(0, 1, 20, config=False) == 10
    assert plan.announce(0, 3, 40, config=False) == 60
    with pytest.raises(RemoteProtocolError, match="buffer 3 came a second time"):
        plan.announce(0, 3, 40, config=False)
    with pytest.raises(RemoteProtocolError, match="buffer 0 came a second time"):
        plan.announce(0, 0, 10, config=False)


def test_late_nothing_is_loaded_before_all_devices_have_everything() -> None:
    plan: LoadPlan[None] = LoadPlan(("vf0", "vf1"), late=True)
    plan.start()
    plan.received(0, Buffer(0, 10, False, None))
    plan.received(0, Buffer(1, 1, True, None))
    plan.received(1, Buffer(1, 2, True, None))
    assert plan.take() is None
    assert not plan.can_load
    plan.received(1, Buffer(0, 20, False, None))
    assert plan.total == plan.total_max == 33
    loads = []
    while (job := plan.take()) is not None:
        plan.written(job)
        plan.loaded(job)
        loads.append((job.device, job.buffer.idx))
    assert loads == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert plan.complete
    assert (plan.total, plan.total_max) == (0, 33)
