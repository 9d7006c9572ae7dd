# SPDX-License-Identifier: GPL-2.0-or-later
"""LoadPlan: whatever the interleaving of channels, each device loads in order and by one loader at a time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant

from mockdev.errors import LocalProtocolError, RemoteProtocolError
from mockdev.multifd.assembly import Buffer
from mockdev.multifd.receiver import LoadJob, LoadPlan
from tests.machines import Machine

DEVICES = ("vf0", "vf1", "vf2")
LAST = 6
ALL = {(device, idx) for device in range(len(DEVICES)) for idx in range(LAST + 1)}


class Loading(Machine):
    """Buffers of three devices in any order, right and wrong ones; loads begin and end at any time.

    Several devices load at once. Buffer `idx` of a device has idx + 1 bytes, the last is its config.

    cap: what a device may have queued, config buffer included; over it nothing is taken, not even by a hair.
    late: nothing is loaded before everything is here. ahead: how far ahead of the next a buffer may be.
    doubled: at the end all come a second time whole, as from a peer whose heads nobody looked at.
    """

    @initialize(
        cap=st.none() | st.integers(LAST + 1, 2 * LAST),
        late=st.integers(0, 3).map(lambda drawn: drawn == 1),
        ahead=st.sampled_from((100, LAST - 2, LAST - 1)),
        doubled=st.integers(0, 3).map(lambda drawn: drawn == 1),
    )
    def make(self, cap: int | None, late: bool, ahead: int, doubled: bool) -> None:
        self.cap = cap
        self.doubled = doubled
        self.late = late
        self.ahead = ahead
        self.plan: LoadPlan[None] = LoadPlan(DEVICES, cap, ahead, late=late)
        self.started = False
        self.announced: set[tuple[int, int]] = set()
        self.came: set[tuple[int, int]] = set()
        self.jobs: dict[int, LoadJob[None]] = {}
        self.writing: set[int] = set()  # of those, not yet written
        self.loaded: list[list[int]] = [[] for _ in DEVICES]
        self.queued = [0] * len(DEVICES)
        self.most = [0] * len(DEVICES)
        self.total_most = 0
        self.furthest = [0] * len(DEVICES)

    def possible(self) -> list[str]:
        steps = ["take"]
        steps += ["receive"] * 3 * (len(self.came) < len(ALL))
        steps += ["announce"] * bool(ALL - self.announced)
        steps += ["write"] * 2 * bool(self.writing)
        steps += ["end_load"] * 2 * bool(self.jobs.keys() - self.writing)
        steps += ["announce_wrongly"]
        steps += ["start"] * (4 - 3 * self.started)
        return steps

    # -- what arrives --------------------------------------------------------------------------------

    def taken(self, device: int) -> int:
        """How many of its buffers have been taken to be loaded."""
        return len(self.loaded[device]) + (device in self.jobs)

    def is_wrong(self, device: int, idx: int, *, config: bool) -> bool:
        """Whether these heads may not come now."""
        highest = max((i for d, i in self.came if d == device), default=-1)
        last_came = (device, LAST) in self.came
        return (
            (device, idx) in self.announced
            or idx > self.taken(device) + self.ahead
            or (last_came and (config or idx > LAST))
            or (config and idx < highest)
        )

    def announce(self, data: st.DataObject) -> None:
        self.announce_one(*data.draw(st.sampled_from(sorted(ALL - self.announced))))

    def announce_one(self, device: int, idx: int) -> bool:
        """Whether it may come."""
        if self.is_wrong(device, idx, config=idx == LAST):
            with pytest.raises(RemoteProtocolError, match="at most"):
                self.plan.announce(device, idx, idx + 1, config=idx == LAST)
            return False
        start = self.plan.announce(device, idx, idx + 1, config=idx == LAST)
        before = all((device, earlier) in self.announced for earlier in range(idx))
        assert start == (sum(range(1, idx + 1)) if before else None)
        self.announced.add((device, idx))
        return True

    def receive(self, data: st.DataObject) -> None:
        """Mostly one of the two that are next, as it is, or nothing would ever be loaded."""
        late = sorted(ALL - self.came)
        soon = [(d, idx) for d, idx in late if idx <= self.taken(d) + 1]
        self.receive_one(*data.draw(st.sampled_from(soon or late) | st.sampled_from(late)))

    def receive_one(self, device: int, idx: int) -> bool:
        """Whether it was taken."""
        if (device, idx) not in self.announced and not self.announce_one(device, idx):
            return False
        buffer: Buffer[None] = Buffer(idx, idx + 1, idx == LAST, None)
        queued = self.queued[device] + idx + 1
        if self.cap is not None and queued > self.cap:
            with pytest.raises(RemoteProtocolError, match=f"to {queued}, over the cap of {self.cap}"):
                self.plan.received(device, buffer)
            return False  # as if it had not come
        self.came.add((device, idx))
        self.furthest[device] = max(self.furthest[device], idx - self.taken(device))
        self.queued[device] = queued
        self.most[device] = max(self.most[device], queued)
        self.total_most = max(self.total_most, sum(self.queued))
        assert self.plan.received(device, buffer) == queued
        if all(here in self.came for here in ALL):
            self.late = False
        return True

    def announce_wrongly(self, data: st.DataObject) -> None:
        heads = [(d, i, c) for d in range(len(DEVICES)) for i in range(LAST + 3) for c in (False, True)]
        wrong = [(d, i, c) for d, i, c in heads if self.is_wrong(d, i, config=c)]
        if wrong:
            device, idx, config = data.draw(st.sampled_from(wrong))
            with pytest.raises(RemoteProtocolError, match="buffer"):
                self.plan.announce(device, idx, idx + 1, config=config)

    def start(self, _data: st.DataObject) -> None:
        if self.started:
            with pytest.raises(RemoteProtocolError, match="second time"):
                self.plan.start()
        else:
            self.plan.start()
            self.started = True

    # -- loaders -------------------------------------------------------------------------------------

    def take(self, data: st.DataObject) -> None:
        self.take_for(data.draw(st.none() | st.integers(0, len(DEVICES) - 1)))

    def take_for(self, device: int | None) -> bool:
        """Whether there was something to load."""
        could = [number for number in range(len(DEVICES)) if self.could_load(number)]
        job = self.plan.take(device)
        assert (job is not None) == bool(could if device is None else device in could)
        if job is None:
            return False
        assert job.device in could
        assert device in (None, job.device)
        assert job.buffer.idx == len(self.loaded[job.device])
        self.jobs[job.device] = job
        self.writing.add(job.device)
        return True

    def write(self, data: st.DataObject) -> None:
        self.write_one(data.draw(st.sampled_from(sorted(self.writing))))

    def write_one(self, device: int) -> None:
        job = self.jobs[device]
        self.writing.remove(device)
        self.queued[device] -= job.buffer.size
        assert self.plan.written(job) == self.queued[device]

    def end_load(self, data: st.DataObject) -> None:
        self.end_one(data.draw(st.sampled_from(sorted(self.jobs.keys() - self.writing))))

    def end_one(self, device: int) -> None:
        job = self.jobs.pop(device)
        self.plan.loaded(job)
        self.loaded[device].append(job.buffer.idx)

    def could_load(self, device: int) -> bool:
        """Whether that device's next buffer is here and nobody loads one."""
        here = (device, len(self.loaded[device])) in self.came
        return self.started and not self.late and device not in self.jobs and here

    # -- at all times, and at the end ----------------------------------------------------------------

    @invariant()
    def complete_exactly_when_all_is_loaded(self) -> None:
        assert self.plan.complete == all(len(done) == LAST + 1 for done in self.loaded)
        everything = all(self.taken(device) == LAST + 1 for device in range(len(DEVICES)))
        assert (self.plan.missing() == "") == everything

    @invariant()
    def something_can_be_loaded_if_it_is_next(self) -> None:
        could = any(map(self.could_load, range(len(DEVICES))))
        assert self.plan.can_load == bool(self.jobs or could)

    @invariant()
    def what_is_queued_is_counted(self) -> None:
        assert [self.plan.queued_max(device) for device in range(len(DEVICES))] == self.most
        assert [self.plan.reorder_max(device) for device in range(len(DEVICES))] == self.furthest
        assert (self.plan.total, self.plan.total_max) == (sum(self.queued), self.total_most)

    def finish(self) -> None:
        """If the rest comes and loaders go on, it completes, unless the cap or the reach ends it."""
        if self.doubled:
            for device, idx in sorted(self.came):
                with pytest.raises(RemoteProtocolError, match="came a second time"):
                    self.plan.received(device, Buffer(idx, 0, idx == LAST, None))
            return
        if not self.started:
            self.start(None)  # type: ignore[arg-type]
        moved = True
        while moved:
            for device in sorted(self.jobs):
                if device in self.writing:
                    self.write_one(device)
                self.end_one(device)
            moved = self.take_for(None)
            if not moved:
                rest = sorted(
                    ALL - self.came, reverse=self.late
                )  # the config first, if nobody waits for more
                moved = any(self.receive_one(*heads) for heads in rest)
            self.complete_exactly_when_all_is_loaded()
        assert self.plan.complete or self.cap is not None or self.late


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
    with pytest.raises(RemoteProtocolError, match="second time") as caught:
        plan.start()
    assert (caught.value.channel, caught.value.field) == ("main", "command")


def test_each_device_keeps_what_is_not_too_far_ahead() -> None:
    plan: LoadPlan[None] = LoadPlan(DEVICES, ahead_max=4)
    assert (plan.total, plan.total_max) == (0, 0)
    plan.received(1, Buffer(4, 0, False, None))
    with pytest.raises(RemoteProtocolError, match="vf2: buffer 5 is 5 ahead"):
        plan.received(2, Buffer(5, 0, False, None))
    assert (plan.total, plan.total_max) == (0, 0)


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


def test_a_second_config_buffer_is_refused_by_its_heads() -> None:
    plan: LoadPlan[None] = LoadPlan(("vf0",))
    plan.received(0, Buffer(3, 1, True, None))
    with pytest.raises(RemoteProtocolError, match="second config buffer"):
        plan.announce(0, 2, 1, config=True)


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
        assert not plan.complete  # one device after the other is
        plan.written(job)
        plan.loaded(job)
        loads.append((job.device, job.buffer.idx))
    assert loads == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert plan.complete
    assert (plan.total, plan.total_max) == (0, 33)
