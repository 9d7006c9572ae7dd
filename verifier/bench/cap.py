# SPDX-License-Identifier: GPL-2.0-or-later
"""What a target can have queued at most: a bound with its proof, and a schedule that reaches it. Pure.

Queued bytes are counted as QEMU's x-migration-max-queued-buffers-size does: of a device, what multifd buffers
brought (the config buffer included, headers not) and has not been written to it. docs/queue-cap.md has the
argument in full; `bound` is its closed form, `play` the schedule, carried out by the plan that our target
runs on.

Source: QEMU hw/vfio/migration-multifd.c: vfio_load_state_buffer_insert, vfio_load_state_buffer_write,
vfio_load_bufs_thread; migration/multifd.c: multifd_device_state_recv
"""

from __future__ import annotations

import heapq
from fractions import Fraction
from math import ceil
from typing import NamedTuple

import msgspec

from mockdev.errors import VfmigError
from mockdev.multifd.assembly import Buffer
from mockdev.multifd.receiver import LoadJob, LoadPlan
from mockdev.runtime.pool import LARGE_BYTES, OVERHEAD_BYTES, SMALL_BYTES_MAX
from mockdev.wire.structs import VFIO_DEVICE_STATE

CONFIG_BYTES = 4326  # QEMU 10.0.2 and 11.1.3 with a mock ConnectX-7 VF: the config buffer's bytes
BUFFERS_MAX = 1 << 20  # in one schedule: what is played in a few seconds
_TABLE_ENTRY_BYTES = 24  # VFIOStateBuffer
_PAGE_BYTES = 4096
_CONFIG_COPIES_BYTES = 2 * (32 << 10)  # QEMUFile's own buffers, one to write and one to read
NS = 1_000_000_000


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked. Sizes in bytes, rates in bytes a second, payload only.

    state_bytes: of each device, what its save file gives after the stop. load_rate: of one device, at least;
    send_rate: what the target can receive over all channels together, None: no limit. stall_ns: the longest
    from when a buffer should have come until its device's load thread can have it, None: no limit.
    """

    vfs: int
    channels: int
    state_bytes: int
    buffer_bytes: int
    config_bytes: int = CONFIG_BYTES
    load_rate: int
    send_rate: int | None = None
    stall_ns: int | None = None

    @property
    def buffers(self) -> int:
        """Buffers of one device, the config buffer included."""
        return ceil(self.state_bytes / self.buffer_bytes) + 1

    @property
    def device_bytes(self) -> int:
        """All that one device can ever have queued."""
        return self.state_bytes + self.config_bytes

    def sizes(self) -> list[int]:
        """Of one device's buffers, by index; the last is the config buffer."""
        whole, rest = divmod(self.state_bytes, self.buffer_bytes)
        return [self.buffer_bytes] * whole + [rest] * bool(rest) + [self.config_bytes]

    def check(self) -> None:
        """VfmigError when it cannot be answered in bounded time."""
        if self.vfs * self.buffers > BUFFERS_MAX:
            raise VfmigError(
                f"{self.vfs} x {self.buffers} buffers, at most {BUFFERS_MAX} are played: take a larger buffer"
            )


class Bound(NamedTuple):
    """Proven: never more than `bytes` are queued. fluid: the closed form's value, before rounding up for
    whole buffers. exact: some schedule reaches it to the byte."""

    bytes: int
    fluid: Fraction
    exact: bool


def bound(case: Case, devices: int) -> Bound:
    """The closed form for `devices` devices together.

    With P bytes a device, V devices, link rate R, load rate L and stall T: what is late holds at most
    A = min(V P, R T). The Y = V P - A bytes before queue most when the devices come one after the other:
    while the y_j bytes of the j-th come, j devices load, and y_j max(0, 1 - j L/R) of them are left.
    """
    total = devices * case.device_bytes
    if case.send_rate is None or case.stall_ns is None:
        return Bound(total, Fraction(total), True)
    late = min(Fraction(total), Fraction(case.send_rate * case.stall_ns, NS))
    if late == total:
        return Bound(total, Fraction(total), True)
    fluid = late
    come = total - late
    for number in range(1, devices + 1):
        share = min(Fraction(case.device_bytes), come)
        fluid += share * max(Fraction(0), 1 - Fraction(number * case.load_rate, case.send_rate))
        come -= share
    # A buffer counts when it is whole, and until it is written: up to one more of each kind a device.
    slack = 2 * devices * max(case.buffer_bytes, case.config_bytes)
    return Bound(min(total, int(fluid) + slack), fluid, False)


class Event(msgspec.Struct, kw_only=True):
    """A moment of a schedule. at_ms: since the first byte was sent; queued_bytes: of all devices then."""

    at_ms: float
    what: str
    queued_bytes: int


class Played(NamedTuple):
    """A schedule as it came out. device_bytes, all_bytes: the most that one device, and all, had queued."""

    device_bytes: int
    all_bytes: int
    events: list[Event]


def play(case: Case, devices: int) -> Played:
    """The worst schedule, on a clock that is made up, with the plan that our target runs on.

    The devices' buffers come one device after the other, as fast as the link can; the loading of each device
    begins as late as it may: where that has no limit, when all has come.
    """
    return _Play(case, devices).run()


class _Play:
    """Times are whole numbers of 1 / (send rate x load rate x 10^9) s, so that nothing is rounded."""

    def __init__(self, case: Case, devices: int) -> None:
        self._case = case
        self._devices = devices
        self._send_rate = case.send_rate or 1
        self._plan: LoadPlan[None] = LoadPlan([f"VF {n}" for n in range(devices)], ahead_max=case.buffers)
        self._jobs: dict[int, LoadJob[None]] = {}
        self._idle = [True] * devices
        self._agenda: list[tuple[int, int]] = []  # when a load ends or may begin, of which device
        device_time = 0 if case.send_rate is None else case.device_bytes * case.load_rate * NS
        self._end = devices * device_time
        stall = None if case.stall_ns is None else case.stall_ns * self._send_rate * case.load_rate
        first = 0 if case.send_rate is None else case.sizes()[0] * case.load_rate * NS
        self._begins = [
            self._end if stall is None else number * device_time + first + stall for number in range(devices)
        ]

    def run(self) -> Played:
        plan = self._plan
        plan.start()
        events = [Event(at_ms=0.0, what="the first buffer is sent", queued_bytes=0)]
        peak = events[0]
        come = 0
        sizes = self._case.sizes()
        for device in range(self._devices):
            for idx, size in enumerate(sizes):
                come += size
                now = 0 if self._case.send_rate is None else come * self._case.load_rate * NS
                self._load_until(now)
                before = plan.total_max
                plan.received(device, Buffer(idx, size, idx == len(sizes) - 1, None))
                if self._idle[device] and plan.started:
                    self._idle[device] = False
                    heapq.heappush(self._agenda, (max(now, self._begins[device]), device))
                if plan.total_max > before:
                    what = f"buffer {idx} of VF {device} has come: no more is queued at any time"
                    peak = Event(at_ms=self._ms(now), what=what, queued_bytes=plan.total_max)
        begin = self._begins[0]
        if self._ms(begin) < peak.at_ms:
            events.append(
                Event(at_ms=self._ms(begin), what="VF 0 begins to load", queued_bytes=self._at(begin))
            )
        events.append(peak)
        most = max(plan.queued_max(device) for device in range(self._devices))
        return Played(most, plan.total_max, events)

    def _at(self, time: int) -> int:
        """What had come by then, at the full rate, before anything was loaded."""
        return time // (self._case.load_rate * NS)

    def _ms(self, time: int) -> float:
        return time / (self._send_rate * self._case.load_rate) / 1e6

    def _load_until(self, now: int) -> None:
        """Loads that end before this time; what comes at the same time still finds them queued."""
        plan = self._plan
        while self._agenda and self._agenda[0][0] < now:
            time, device = heapq.heappop(self._agenda)
            if (done := self._jobs.pop(device, None)) is not None:
                plan.written(done)
                plan.loaded(done)
            job = plan.take(device)
            if job is None:
                self._idle[device] = True
                continue
            self._jobs[device] = job
            ends = time + job.buffer.size * self._send_rate * NS
            heapq.heappush(self._agenda, (ends, device))


class Part(msgspec.Struct, kw_only=True):
    """Memory of the target for one purpose, with a QEMU there and with an endpoint of ours."""

    what: str
    qemu_bytes: int
    ours_bytes: int


def parts(case: Case, queued_bytes: int) -> list[Part]:
    """What a target's memory limit has to hold besides what it holds without multifd transfer.

    Not in it: what the kernel needs for sockets, which a control group may be charged for as well. A byte
    that is still in a socket is not queued.
    """
    buffers = case.vfs * case.buffers
    receiving = min(case.channels, buffers)
    received = case.buffer_bytes + VFIO_DEVICE_STATE.size
    room = case.buffer_bytes if case.buffer_bytes <= SMALL_BYTES_MAX else LARGE_BYTES
    table = _TABLE_ENTRY_BYTES * (1 << (case.buffers - 1).bit_length())
    return [
        Part(what="queued buffers", qemu_bytes=queued_bytes, ours_bytes=queued_bytes),
        Part(
            what=f"a buffer being received on each of {receiving} channels",
            qemu_bytes=receiving * received,
            ours_bytes=receiving * room,
        ),
        Part(
            what="the allocator: up to a page for each buffer",
            qemu_bytes=buffers * _PAGE_BYTES,
            ours_bytes=buffers * (_PAGE_BYTES + OVERHEAD_BYTES) + _unused(case, queued_bytes, room),
        ),
        Part(
            what="tables by index, and their copies while they grow",
            qemu_bytes=case.vfs * (table + table // 2),
            ours_bytes=0,
        ),
        Part(
            what="copies of the config buffers while they are loaded",
            qemu_bytes=case.vfs * (case.config_bytes + _CONFIG_COPIES_BYTES),
            ours_bytes=case.vfs * case.config_bytes,
        ),
    ]


def _unused(case: Case, queued_bytes: int, room: int) -> int:
    """Our pool's buffers are of one size: what the queued ones leave unused in theirs."""
    return queued_bytes // case.buffer_bytes * (room - case.buffer_bytes)


ASSUMPTIONS = (
    "each index is sent once, and a device's save file gives no more after the stop than the state size",
    "a device has one loader; it takes buffers in the order of their index and, while it has the next one, "
    "loads at the load rate or faster",
    "bytes are counted in when a buffer is whole, and out when the device has taken all of it",
    "the link brings no more than the send rate, over all channels together",
    "no buffer can be loaded later than the stall after it was due, whoever is to blame",
)
_LIMITLESS = (
    "Nothing is counted that was not received, and nothing is received twice: no more than the state and the "
    "config buffer. The schedule reaches it, for nothing is loaded before all has come."
)
_LIMITED = (
    "What is late has at most the stall's time at the send rate. Of what came in time, a device whose "
    "loading has gone on for e seconds has loaded e times the load rate, and in those seconds the link "
    "brought e times the send rate: the queues are largest when the devices came one after the other. Whole "
    "buffers add at most two of them a device. The schedule shows how near that is."
)


class Searched(msgspec.Struct, kw_only=True):
    """A small case of which every schedule was tried. closed_form_bytes: the proven bound of it."""

    what: str
    states: int
    worst_bytes: int
    schedule_bytes: int
    closed_form_bytes: int


class Proof(msgspec.Struct, kw_only=True):
    """upper_*: never more, by the argument; reached_*: what the schedule came to. exact: they are the same.

    device: of any one device; all: of all together.
    """

    argument: str
    assumptions: tuple[str, ...] = ASSUMPTIONS
    upper_device_bytes: int
    upper_all_bytes: int
    reached_device_bytes: int
    reached_all_bytes: int
    exact: bool
    searched: list[Searched]


class Schedule(msgspec.Struct, kw_only=True):
    """late_ms: how late loading begins, None: when all has come; who: may be to blame for it, each alone."""

    who: list[str]
    late_ms: float | None
    events: list[Event]


class CapVerdict(msgspec.Struct, kw_only=True):
    """What a cap of this many bytes a device does. enough: no schedule can exceed it."""

    cap_bytes: int
    enough: bool
    sentence: str


class Certificate(msgspec.Struct, kw_only=True):
    """worst_queued_bytes: of all devices together; worst_device_queued_bytes: of one, which a cap must allow.

    advice_bytes: what to add to the memory limit of a QEMU target; advice: what that is made of.
    """

    case: Case
    worst_queued_bytes: int
    worst_device_queued_bytes: int
    schedule: Schedule
    proof: Proof
    advice_bytes: int
    advice: list[Part]


def certify(case: Case, searched: list[Searched]) -> Certificate:
    """The whole certificate but what was measured. VfmigError: as Case.check."""
    case.check()
    one, all_of_them = bound(case, 1), bound(case, case.vfs)
    played = play(case, case.vfs)
    advice = parts(case, all_of_them.bytes)
    return Certificate(
        case=case,
        worst_queued_bytes=all_of_them.bytes,
        worst_device_queued_bytes=one.bytes,
        schedule=Schedule(
            who=_who(case),
            late_ms=None if case.stall_ns is None else case.stall_ns / 1e6,
            events=played.events,
        ),
        proof=Proof(
            argument=_LIMITLESS if all_of_them.exact else _LIMITED,
            upper_device_bytes=one.bytes,
            upper_all_bytes=all_of_them.bytes,
            reached_device_bytes=played.device_bytes,
            reached_all_bytes=played.all_bytes,
            exact=(one.bytes, all_of_them.bytes) == (played.device_bytes, played.all_bytes),
            searched=searched,
        ),
        advice_bytes=sum(part.qemu_bytes for part in advice),
        advice=advice,
    )


def _who(case: Case) -> list[str]:
    who = ["the load thread of each device (or its first load takes so long)"]
    if case.channels > 1:
        who.append("the channel with buffer 0 of each device, all buffers behind the channels' last SYNC")
    if case.stall_ns is None or case.vfs == 1:  # it is late once, not for each device anew
        who.append("SWITCHOVER_START on the main channel, all buffers before the channels' last SYNC")
    return who


def judge_cap(certificate: Certificate, cap_bytes: int) -> CapVerdict:
    """Whether a cap of each device is enough."""
    proof = certificate.proof
    enough = cap_bytes >= proof.upper_device_bytes
    if enough:
        sentence = "is enough: no schedule queues more, so no migration fails by it"
    elif cap_bytes < proof.reached_device_bytes:
        sentence = (
            "is too small: the schedule below exceeds it, and the target gives up. If the source has sent "
            "all by then, a QEMU target (11.1.3) may tell it that all is well, and the VM is lost, or hang"
        )
    else:
        sentence = "lies between what the schedule reaches and what is proven: it may be too small"
    return CapVerdict(cap_bytes=cap_bytes, enough=enough, sentence=f"a cap of {cap_bytes} bytes {sentence}")
