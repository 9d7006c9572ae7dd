# SPDX-License-Identifier: GPL-2.0-or-later
"""From one device to another, whatever the sizes: every byte arrives once, in one order."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from itertools import cycle

from hypothesis import given, settings
from hypothesis import strategies as st

from mockdev.device.device import Device
from mockdev.device.files import NotYet
from mockdev.device.image import Pattern
from mockdev.device.resuming import ResumeFile
from mockdev.device.saving import Plan, SaveFile
from mockdev.device.timing import CONNECTX7, OPAQUE, UNLIMITED, Firmware, Profile
from mockdev.errors import DeviceError
from mockdev.vfio.uapi import State
from tests.examples import examples

PATTERN = Pattern(3, "vf0")
PROFILES = (UNLIMITED, CONNECTX7, OPAQUE, OPAQUE.at_rate(1 << 20))
SIZES = st.integers(1, 5000)


class Pair:
    """Two devices on one simulated clock, and everything a rim does for them."""

    def __init__(self, state_bytes: int, plan: Plan, profile: Profile) -> None:
        memory = bytearray(state_bytes)
        PATTERN.fill(memoryview(memory))
        self.source = Device("vf0", memory, Firmware(profile), plan=plan)
        self.target = Device("vf0", bytearray(state_bytes), Firmware(profile))
        self.now = 0
        self.sent = bytearray()

    def go(self, device: Device, state: State) -> SaveFile | ResumeFile | None:
        while isinstance(answer := device.set_state(self.now, state), NotYet):
            self.wait(answer.ready_ns)
        assert answer is None or isinstance(answer, SaveFile | ResumeFile)
        return answer

    def wait(self, ready_ns: int) -> None:
        assert ready_ns > self.now
        self.now = ready_ns

    def read_out(self, file: SaveFile, sizes: Iterator[int]) -> None:
        """Read to the end or to the pause of PRE_COPY."""
        while True:
            try:
                views = file.read(self.now, next(sizes))
            except DeviceError as error:
                if error.errno == errno.ENOMSG:
                    return
                raise
            if isinstance(views, NotYet):
                self.wait(views.ready_ns)
                continue
            if not views:
                return
            self.sent += b"".join(views)

    def write_in(self, file: ResumeFile, sizes: Iterator[int]) -> None:
        rest = memoryview(self.sent)
        while rest:
            part = rest[: next(sizes)]
            rest = rest[len(part) :]
            while True:
                wrote = file.write(self.now, part)
                part = part[wrote.consumed :]
                if wrote.ready_ns > self.now:
                    self.wait(wrote.ready_ns)
                elif not part:
                    break


@settings(max_examples=examples(120))
@given(
    state_bytes=st.integers(2, 20_000),
    precopy=st.tuples(st.integers(0, 12_000), SIZES, SIZES),
    chunk_bytes=st.integers(50, 9000),
    profile=st.sampled_from(PROFILES),
    reads=st.lists(SIZES, min_size=1, max_size=5),
    writes=st.lists(SIZES, min_size=1, max_size=5),
    questions=st.integers(0, 4),
    p2p_first=st.booleans(),
)
def test_every_byte_arrives(
    state_bytes: int,
    precopy: tuple[int, int, int],
    chunk_bytes: int,
    profile: Profile,
    reads: list[int],
    writes: list[int],
    questions: int,
    p2p_first: bool,
) -> None:
    pair = Pair(state_bytes, Plan(*precopy, chunk_bytes), profile)
    sizes = cycle(reads)
    file = None
    if precopy[0]:
        file = pair.go(pair.source, State.PRE_COPY)
        assert isinstance(file, SaveFile)
        promised = 0
        for _ in range(questions):
            pair.read_out(file, sizes)
            while isinstance(told := pair.source.precopy_info(pair.now, file), NotYet):
                pair.wait(told.ready_ns)
            promised += told.dirty_bytes
        pair.read_out(file, sizes)
        headers = 24 + 16 * (1 + questions) if profile.records else 0
        assert len(pair.sent) <= headers + min(precopy[1], precopy[0]) + promised
        assert file.saved_bytes <= min(precopy[0], state_bytes - 1)
    if p2p_first:
        pair.go(pair.source, State.PRE_COPY_P2P if precopy[0] else State.RUNNING_P2P)
    file = pair.go(pair.source, State.STOP_COPY) or file
    assert isinstance(file, SaveFile)
    pair.read_out(file, sizes)
    assert file.read(pair.now, 1) == []
    pair.go(pair.source, State.STOP)

    into = pair.go(pair.target, State.RESUMING)
    assert isinstance(into, ResumeFile)
    pair.write_in(into, cycle(writes))
    assert into.loaded_bytes == state_bytes
    assert not into.inside_record
    pair.go(pair.target, State.RUNNING)
    assert PATTERN.verify(pair.target.image) is None

    # And on to a third device from there, as a chain of migrations would.
    pair.sent.clear()
    file = pair.go(pair.target, State.STOP_COPY)
    assert isinstance(file, SaveFile)
    pair.read_out(file, sizes)
    third = Pair(state_bytes, Plan(), profile)
    into = third.go(third.target, State.RESUMING)
    assert isinstance(into, ResumeFile)
    third.sent = pair.sent
    third.write_in(into, cycle(writes))
    assert PATTERN.verify(third.target.memory) is None
