# SPDX-License-Identifier: GPL-2.0-or-later
"""SendPlan: indices without gaps in the order of the reads, SYNCs after their pages, nobody starved."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mockdev.errors import LocalProtocolError
from mockdev.multifd.sender import RamPacket, ReadDevice, SendPlan, SendRam, SendSync

PACKET = RamPacket("pc.ram", (0,), ())


@settings(max_examples=150)
@given(
    channels=st.integers(1, 6),
    buffers=st.lists(st.integers(0, 6), min_size=1, max_size=4),
    in_flight=st.integers(1, 6),
    seed=st.integers(0, 1 << 32),
)
def test_devices_over_channels(channels: int, buffers: list[int], in_flight: int, seed: int) -> None:
    """Channels work at random speeds on devices that pause at random."""
    rng = Random(seed)
    plan = SendPlan([f"vf{n}" for n in range(len(buffers))], channels, in_flight_max=in_flight)
    left = [count + 1 for count in buffers]
    sent: list[list[int]] = [[] for _ in buffers]
    busy: dict[int, ReadDevice | None] = {}
    paused = set(range(len(buffers)))
    steps = 0
    while not plan.devices_sent or busy:
        steps += 1
        assert steps < 10_000
        if paused and rng.random() < 0.5:
            plan.readable(paused.pop())
        channel = rng.randrange(channels)
        if channel not in busy:
            work = plan.take(channel)
            assert (work is None) or isinstance(work, ReadDevice)
            if work is not None:
                busy[channel] = work
        elif (turn := busy[channel]) is not None:
            assert len(busy) <= in_flight
            if rng.random() < 0.2:
                plan.pause(channel)
                paused.add(turn.device)
                del busy[channel]
            else:
                left[turn.device] -= 1
                sent[turn.device].append(plan.claim(channel, last=left[turn.device] == 0))
                busy[channel] = None
        else:
            plan.written(channel)
            del busy[channel]
    assert sent == [list(range(count + 1)) for count in buffers]
    assert all(plan.has_ended(device) for device in range(len(buffers)))


@given(channels=st.integers(1, 5), rounds=st.lists(st.integers(0, 9), min_size=1, max_size=4))
def test_every_sync_follows_its_pages(channels: int, rounds: list[int]) -> None:
    plan = SendPlan((), channels, ram_queued_max=10)
    numbers: list[tuple[int, int, bool]] = []  # channel, number, is a SYNC
    for packets in rounds:
        for _ in range(packets):
            assert plan.queue_ram(PACKET)
        plan.request_sync()
        with pytest.raises(LocalProtocolError):
            plan.request_sync()
        with pytest.raises(LocalProtocolError):
            plan.queue_ram(PACKET)
        while not plan.synced:
            for channel in range(channels):
                work = plan.take(channel)
                if work is not None:
                    assert isinstance(work, (SendRam, SendSync))
                    numbers.append((channel, work.packet_num, isinstance(work, SendSync)))
                    plan.written(channel)
    assert [number for _, number, _ in numbers] == list(range(sum(rounds) + channels * len(rounds)))
    for channel in range(channels):
        assert sum(sync for c, _, sync in numbers if c == channel) == len(rounds)
    flat = [sync for _, _, sync in numbers]
    for packets in rounds:  # each round: its pages, then one SYNC a channel
        assert flat[: packets + channels] == [False] * packets + [True] * channels
        del flat[: packets + channels]


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
