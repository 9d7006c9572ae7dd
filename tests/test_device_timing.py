# SPDX-License-Identifier: GPL-2.0-or-later
"""The shared firmware: commands of one PF slow each other as the formula says, on a simulated clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mockdev.device.timing import CONNECTX7, MIB, OPAQUE, PROFILES, UNLIMITED, Command, Firmware, Profile

MS = 1_000_000


class Log:
    """Notes at what time each command ended."""

    def __init__(self) -> None:
        self.ends: dict[str, int] = {}

    def command(self, name: str, cost_ns: int) -> Command:
        def done(end_ns: int) -> None:
            assert name not in self.ends
            self.ends[name] = end_ns

        return Command(cost_ns, done)


def test_a_chunk_alone_costs_what_the_profile_says() -> None:
    assert CONNECTX7.save_ns(8 * MIB) == CONNECTX7.load_ns(8 * MIB) == 9_500_000
    assert UNLIMITED.save_ns(8 * MIB) == 0
    assert [profile.free for profile in PROFILES.values()] == [False, True, True]
    assert not OPAQUE.records
    assert OPAQUE.at_rate(MIB).save_ns(MIB) == 1_000_000_000
    assert not OPAQUE.at_rate(MIB).free


@pytest.mark.parametrize(("gamma", "eta", "ends_ns"), [(0, 0, 10), (1, 0, 20), (0.5, 0, 10 * 2**0.5)])
def test_two_at_once_share_by_gamma(gamma: float, eta: float, ends_ns: float) -> None:
    firmware, log = Firmware(Profile("test", gamma=gamma, eta=eta)), Log()
    firmware.start(0, log.command("a", 10 * MS))
    firmware.start(0, log.command("b", 10 * MS))
    firmware.advance(100 * MS)
    assert log.ends == {"a": pytest.approx(ends_ns * MS, abs=2), "b": pytest.approx(ends_ns * MS, abs=2)}


def test_siblings_with_a_file_open_slow_by_eta_even_when_idle() -> None:
    firmware, log = Firmware(Profile("test", eta=0.5)), Log()
    for _ in range(4):
        firmware.enter(0)
    firmware.start(0, log.command("a", 10 * MS))
    firmware.advance(25 * MS - 1)
    assert not log.ends
    firmware.advance(25 * MS)
    assert log.ends == {"a": 25 * MS}
    firmware.start(25 * MS, log.command("b", 10 * MS))
    for _ in range(3):
        firmware.leave(25 * MS + 12_500_000)  # half done
    firmware.advance(100 * MS)
    assert log.ends["b"] == 25 * MS + 12_500_000 + 5 * MS


def test_one_that_joins_late_and_one_that_leaves_early() -> None:
    firmware, log = Firmware(Profile("test", gamma=1)), Log()
    first = log.command("a", 10 * MS)
    firmware.start(0, first)
    assert firmware.ready_ns(first) == 10 * MS
    second = log.command("b", 10 * MS)
    firmware.start(5 * MS, second)  # a has 5 left: both at half speed until 15
    assert firmware.ready_ns(first) == 15 * MS
    assert firmware.ready_ns(second) == 20 * MS
    firmware.advance(60 * MS)
    assert log.ends == {"a": 15 * MS, "b": 20 * MS}
    third, fourth = log.command("c", 10 * MS), log.command("d", 10 * MS)
    firmware.start(60 * MS, third)
    firmware.start(60 * MS, fourth)
    firmware.cancel(64 * MS, third)
    firmware.advance(100 * MS)
    assert log.ends["d"] == 72 * MS
    assert "c" not in log.ends


def test_what_follows_starts_when_the_one_before_ended_not_when_someone_looked() -> None:
    firmware = Firmware(Profile("test"))
    ends: list[int] = []

    def again(end_ns: int) -> None:
        ends.append(end_ns)
        if len(ends) < 5:
            firmware.start(end_ns, Command(10, again))

    firmware.start(0, Command(10, again))
    firmware.advance(1000)
    assert ends == [10, 20, 30, 40, 50]


def test_a_command_without_cost_is_done_at_once_and_time_never_goes_back() -> None:
    firmware, log = Firmware(UNLIMITED), Log()
    firmware.start(5, log.command("a", 0))
    assert log.ends == {"a": 5}
    firmware.start(100, log.command("b", 10))
    firmware.advance(50)
    assert "b" not in log.ends
    firmware.start(50, log.command("c", 10))
    firmware.advance(1000)
    assert (log.ends["b"], log.ends["c"]) == (110, 110)


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 60)), min_size=1, max_size=8),
    st.floats(0, 1),
    st.floats(0, 1),
    st.lists(st.integers(0, 900), max_size=9),
)
def test_ends_do_not_depend_on_who_looks_when(
    starts: list[tuple[int, int]], gamma: float, eta: float, looks: list[int]
) -> None:
    def play(times: list[int]) -> dict[str, int]:
        firmware, log = Firmware(Profile("test", gamma=gamma, eta=eta)), Log()
        firmware.enter(0)
        firmware.enter(0)
        events = sorted([(at, index) for index, (at, _) in enumerate(starts)] + [(at, -1) for at in times])
        for at, index in events:
            if index < 0:
                firmware.advance(at)
            else:
                firmware.start(at, log.command(str(index), starts[index][1]))
        firmware.advance(10**6)
        return log.ends

    quiet, watched = play([]), play(looks)
    assert quiet.keys() == watched.keys() == {str(i) for i in range(len(starts))}
    # Ends are whole nanoseconds, so each look may round once.
    assert all(abs(quiet[name] - watched[name]) <= 1 + len(starts) for name in quiet)
    for name, (at, cost) in zip(map(str, range(len(starts))), starts, strict=True):
        assert quiet[name] >= at + cost


@given(
    costs=st.lists(st.integers(1, 10**9), min_size=1, max_size=4),
    sessions=st.integers(1, 4),
    start_ns=st.integers(1_700_000_000 * 10**9, 1_900_000_000 * 10**9),
)
def test_who_comes_back_when_told_is_not_told_the_same_again(
    costs: list[int], sessions: int, start_ns: int
) -> None:
    """At times of this century, which a float holds in steps of 256 ns only, waiting must still end."""
    firmware = Firmware(PROFILES["connectx7"])
    for _ in range(sessions):
        firmware.enter(start_ns)
    ended: list[int] = []
    commands = [Command(cost, ended.append) for cost in costs]
    for command in commands:
        firmware.start(start_ns, command)
    now_ns = start_ns
    for wanted in range(1, len(commands) + 1):
        while len(ended) < wanted:
            left = [c for c in commands if c in firmware._running]
            again_ns = min(map(firmware.ready_ns, left))
            assert again_ns > now_ns
            now_ns = again_ns
            firmware.advance(now_ns)
