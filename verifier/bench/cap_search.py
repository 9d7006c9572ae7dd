# SPDX-License-Identifier: GPL-2.0-or-later
"""Every schedule of a small migration, tried: what the plans of our own endpoints allow, no more and no less.

`untimed` lets channels, load threads and the main channel be late without limit, and carries out the SendPlan
and the LoadPlan themselves. `timed` has a link that brings one buffer at a time, loads that take as long as
they may, and buffers that are late within a limit; its loads are those of the LoadPlan. Pure.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import NamedTuple

from mockdev.multifd.assembly import Buffer
from mockdev.multifd.receiver import LoadJob, LoadPlan
from mockdev.multifd.sender import ReadDevice, SendPlan
from verifier.bench.cap import NS, Case, Searched, bound, play


class Found(NamedTuple):
    """The most that was queued in any schedule, of one device and of all; states: that were gone through."""

    device_bytes: int
    all_bytes: int
    states: int


class Sent(NamedTuple):
    """A buffer on its way."""

    device: int
    idx: int


def untimed(sizes: list[int], devices: int, channels: int) -> Found:
    """All schedules of devices whose buffers have these sizes, the config buffer last.

    A channel that has written a buffer goes on; what it wrote arrives in its order, at any time.
    """
    first = _Untimed(sizes, devices, channels)
    seen = {first.key()}
    agenda = [first]
    device_bytes = all_bytes = 0
    while agenda:
        here = agenda.pop()
        for move, number in here.moves():
            there = copy.deepcopy(here)
            move(there, number)
            all_bytes = max(all_bytes, there.target.total_max)
            device_bytes = max(device_bytes, *map(there.target.queued_max, range(devices)))
            key = there.key()
            if key not in seen:
                seen.add(key)
                agenda.append(there)
    return Found(device_bytes, all_bytes, len(seen))


class _Untimed:
    """A state of both ends and of what is on its way between them."""

    def __init__(self, sizes: list[int], devices: int, channels: int) -> None:
        names = [f"VF {number}" for number in range(devices)]
        self.source = SendPlan(names, channels)
        self.target: LoadPlan[None] = LoadPlan(names)
        self._sizes = sizes
        self._closed = tuple(range(devices))  # devices that cannot be read yet
        self._order: tuple[int, ...] = ()  # devices that can, in the order of their turns
        self._writing: list[Sent | None] = [None] * channels
        self._flying: list[tuple[Sent, ...]] = [()] * channels
        self._come: frozenset[Sent] = frozenset()
        self._jobs: list[LoadJob[None] | None] = [None] * devices
        self._loaded = [0] * devices

    def key(self) -> tuple[object, ...]:
        """What tells two states apart: all but the peaks on the way here."""
        sent = tuple(self.source.next_idx(device) for device in range(len(self._jobs)))
        loading = tuple(job is not None for job in self._jobs)
        loads = (self.target.started, tuple(self._loaded), loading, self._come)
        return (self._closed, self._order, sent, tuple(self._writing), tuple(self._flying), *loads)

    def moves(self) -> Iterator[tuple[Move, int]]:
        """All that can happen next: a move and the device or channel that makes it."""
        for device in self._closed:
            yield _Untimed._open, device
        if not self.target.started:
            yield _Untimed._start, 0
        for channel, writing in enumerate(self._writing):
            if writing is not None:
                yield _Untimed._write, channel
            elif self._order:
                yield _Untimed._claim, channel
            if self._flying[channel]:
                yield _Untimed._arrive, channel
        for device, job in enumerate(self._jobs):
            if job is not None:
                yield _Untimed._end_load, device
            elif self.target.started and Sent(device, self._loaded[device]) in self._come:
                yield _Untimed._begin_load, device

    def _open(self, device: int) -> None:
        self.source.readable(device)
        self._closed = tuple(other for other in self._closed if other != device)
        self._order += (device,)

    def _start(self, _: int) -> None:
        self.target.start()

    def _claim(self, channel: int) -> None:
        work = self.source.take(channel)
        assert isinstance(work, ReadDevice)
        assert work.device == self._order[0]
        last = self.source.next_idx(work.device) == len(self._sizes) - 1
        idx = self.source.claim(channel, last=last)
        self._writing[channel] = Sent(work.device, idx)
        self._order = self._order[1:] + (() if last else (work.device,))

    def _write(self, channel: int) -> None:
        sent = self._writing[channel]
        assert sent is not None
        self.source.written(channel)
        self._writing[channel] = None
        self._flying[channel] += (sent,)

    def _arrive(self, channel: int) -> None:
        sent, *rest = self._flying[channel]
        self._flying[channel] = tuple(rest)
        self._come |= {sent}
        config = sent.idx == len(self._sizes) - 1
        self.target.received(sent.device, Buffer(sent.idx, self._sizes[sent.idx], config, None))

    def _begin_load(self, device: int) -> None:
        self._jobs[device] = self.target.take(device)

    def _end_load(self, device: int) -> None:
        job = self._jobs[device]
        assert job is not None
        self.target.written(job)
        self.target.loaded(job)
        self._jobs[device] = None
        self._loaded[device] += 1


Move = Callable[[_Untimed, int], None]


def timed(buffers: int, devices: int, load_ticks: int, stall_ticks: int) -> Found:
    """All schedules of buffers of one byte, of which the link brings at most one a tick.

    The k-th buffer that the source sends is due after k ticks, and load threads can have it `stall_ticks`
    later at the latest, in any order (there are channels enough); a load takes `load_ticks` and begins at
    once.
    """
    first = _Timed(buffers, devices, load_ticks, stall_ticks)
    seen = {first.key()}
    agenda = [first]
    device_bytes = all_bytes = 0
    while agenda:
        here = agenda.pop()
        for due in here.senders():
            for comes in here.comers():
                there = copy.deepcopy(here)
                if not there.tick(due, comes):
                    continue
                all_bytes = max(all_bytes, there.target.total_max)
                device_bytes = max(device_bytes, *map(there.target.queued_max, range(devices)))
                key = there.key()
                if key not in seen:
                    seen.add(key)
                    agenda.append(there)
    return Found(device_bytes, all_bytes, len(seen))


class _Timed:
    """A state of the link and of the target after some ticks."""

    def __init__(self, buffers: int, devices: int, load_ticks: int, stall_ticks: int) -> None:
        self.target: LoadPlan[None] = LoadPlan([f"VF {number}" for number in range(devices)])
        self.target.start()
        self._buffers = buffers
        self._load_ticks = load_ticks
        self._stall_ticks = stall_ticks
        self._sent = [0] * devices
        self._left = frozenset(Sent(d, i) for d in range(devices) for i in range(buffers))
        self._due: tuple[tuple[Sent, int], ...] = ()  # not here yet: ticks until it must be
        self._jobs: list[LoadJob[None] | None] = [None] * devices
        self._busy = [0] * devices  # ticks that a load still takes
        self._loaded = [0] * devices

    def key(self) -> tuple[object, ...]:
        """What tells two states apart."""
        return (self._left, tuple(self._sent), self._due, tuple(self._busy), tuple(self._loaded))

    def senders(self) -> list[int | None]:
        """Devices whose next buffer may be the one that is due in the next tick."""
        unsent: list[int | None] = [d for d, sent in enumerate(self._sent) if sent < self._buffers]
        return unsent or ([None] if self._left or any(self._busy) else [])

    def comers(self) -> list[Sent | None]:
        """What may come in the next tick: one buffer, or none."""
        return [None, *sorted(self._left)]

    def tick(self, due: int | None, comes: Sent | None) -> bool:
        """One tick; False when something would come too late."""
        if due is not None:
            sent = Sent(due, self._sent[due])
            self._sent[due] += 1
            self._due += ((sent, self._stall_ticks + 1),)
        if comes is not None:
            self._left -= {comes}
            config = comes.idx == self._buffers - 1
            self.target.received(comes.device, Buffer(comes.idx, 1, config, None))
        self._due = tuple((sent, left - 1) for sent, left in self._due if sent in self._left)
        if any(left <= 0 for _, left in self._due):
            return False
        for device in range(len(self._jobs)):
            self._load(device)
        return True

    def _load(self, device: int) -> None:
        """A load goes on for the tick that has passed; the next one begins now."""
        job = self._jobs[device]
        if job is not None:
            self._busy[device] -= 1
            if self._busy[device]:
                return
            self.target.written(job)
            self.target.loaded(job)
            self._loaded[device] += 1
        self._jobs[device] = self.target.take(device)
        self._busy[device] = self._load_ticks if self._jobs[device] is not None else 0


def searched() -> list[Searched]:
    """Small cases of either kind, searched, beside the schedule and the closed form. Takes about a second."""
    made = []
    for devices, buffers, channels in ((1, 3, 2), (1, 3, 1)):
        case = _small(devices, buffers, channels)
        found = untimed(case.sizes(), devices, channels)
        what = f"{devices} VF, {buffers} buffers, {channels} channels, anything late without limit"
        made.append(_searched(what, found, case))
    for devices, buffers, rate, stall in ((1, 5, 2, 2), (2, 3, 2, 1), (2, 3, 4, 1)):
        case = _small(devices, buffers, 8, send_rate=rate, stall_ns=stall * NS // rate)
        found = timed(buffers, devices, rate, stall)
        what = (
            f"{devices} VF, {buffers} buffers, a link of {rate} x the load rate, {stall} buffers' time late"
        )
        made.append(_searched(what, found, case))
    return made


def _small(devices: int, buffers: int, channels: int, **limits: int) -> Case:
    """Buffers of one byte, loaded at one byte a second."""
    return Case(
        vfs=devices,
        channels=channels,
        state_bytes=buffers - 1,
        buffer_bytes=1,
        config_bytes=1,
        load_rate=1,
        **limits,
    )


def _searched(what: str, found: Found, case: Case) -> Searched:
    return Searched(
        what=what,
        states=found.states,
        worst_bytes=found.all_bytes,
        schedule_bytes=play(case, case.vfs).all_bytes,
        closed_form_bytes=bound(case, case.vfs).bytes,
    )
