# SPDX-License-Identifier: GPL-2.0-or-later
"""`vfmig bench cap`: the bound against every schedule of small cases, and real runs that reach it."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mockdev.lab.migration import run_migration
from mockdev.lab.qemu import BINARY
from mockdev.runtime.config import MigrationConfig
from tests.examples import examples
from verifier.bench.cap import CONFIG_BYTES, NS, Case, bound, certify, judge_cap, play
from verifier.bench.cap_claim import rule
from verifier.bench.cap_forced import Observed, force, observe
from verifier.bench.cap_search import searched, timed, untimed
from verifier.cli.group import execute

MIB = 1 << 20
QEMU_11 = Path(__file__).parent.parent / ".qemu" / "qemu-system-x86_64"


def unit_case(devices: int, buffers: int, rate: int, stall: int) -> Case:
    """Buffers of a byte, loaded at a byte a second; the link brings `rate` times that."""
    return Case(
        vfs=devices,
        channels=8,
        state_bytes=buffers - 1,
        buffer_bytes=1,
        config_bytes=1,
        load_rate=1,
        send_rate=rate,
        stall_ns=stall * NS // rate,
    )


cases = st.builds(
    Case,
    vfs=st.integers(1, 4),
    channels=st.integers(1, 8),
    state_bytes=st.integers(1, 300),
    buffer_bytes=st.integers(1, 40),
    config_bytes=st.integers(1, 50),
    load_rate=st.integers(1, 100),
    send_rate=st.none() | st.integers(1, 400),
    stall_ns=st.none() | st.integers(0, 20 * NS),
)


# -- the closed form, the schedule and the search ----------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "devices", "channels"),
    [
        ([2, 1], 1, 1),
        ([3, 2, 1], 1, 2),
        ([1, 5, 2], 1, 3),
        ([2, 2, 2, 1], 1, 2),
        ([2, 1], 2, 1),
        ([1, 3], 2, 2),
    ],
)
def test_without_limits_the_worst_of_all_schedules_is_everything(
    sizes: list[int], devices: int, channels: int
) -> None:
    found = untimed(sizes, devices, channels)
    assert (found.device_bytes, found.all_bytes) == (sum(sizes), devices * sum(sizes))
    case = Case(
        vfs=devices,
        channels=channels,
        state_bytes=sum(sizes[:-1]),
        buffer_bytes=max(sizes),
        config_bytes=sizes[-1],
        load_rate=1,
    )
    assert bound(case, devices).bytes == found.all_bytes
    assert play(case, devices).all_bytes == found.all_bytes


@settings(max_examples=examples(40))
@given(st.integers(1, 5), st.sampled_from([1, 2, 4, 5]), st.integers(0, 3))
def test_of_one_device_no_schedule_is_worse_than_ours(buffers: int, rate: int, stall: int) -> None:
    case = unit_case(1, buffers, rate, stall)
    found, played = timed(buffers, 1, rate, stall), play(case, 1)
    assert found.all_bytes == played.all_bytes <= bound(case, 1).bytes


@pytest.mark.parametrize(
    ("buffers", "rate", "stall"),
    [(2, 1, 1), (2, 4, 0), (3, 1, 0), (3, 2, 0), (3, 2, 1), (3, 4, 1), (3, 1, 2)],
)
def test_of_two_devices_no_schedule_is_worse_than_ours(buffers: int, rate: int, stall: int) -> None:
    case = unit_case(2, buffers, rate, stall)
    found, played = timed(buffers, 2, rate, stall), play(case, 2)
    assert found.all_bytes == played.all_bytes <= bound(case, 2).bytes
    assert found.device_bytes == played.device_bytes <= bound(case, 1).bytes


@settings(max_examples=examples(200))
@given(cases)
def test_the_schedule_stays_within_the_bound_and_near_it(case: Case) -> None:
    one, all_of_them, played = bound(case, 1), bound(case, case.vfs), play(case, case.vfs)
    assert played.device_bytes <= one.bytes <= case.device_bytes
    assert played.all_bytes <= all_of_them.bytes <= case.vfs * case.device_bytes
    if all_of_them.exact:
        assert played.all_bytes == all_of_them.bytes == case.vfs * case.device_bytes
    # What a fluid could do, whole buffers can do but for a buffer a device.
    room = case.vfs * max(case.buffer_bytes, case.config_bytes)
    assert played.all_bytes >= all_of_them.fluid - room


@given(cases, st.integers(1, 50), st.integers(0, 5 * NS))
def test_less_time_and_a_faster_device_are_never_worse(case: Case, faster: int, sooner_ns: int) -> None:
    assert (
        bound(_changed(case, load_rate=case.load_rate + faster), case.vfs).fluid
        <= bound(case, case.vfs).fluid
    )
    if case.stall_ns is not None:
        less = _changed(case, stall_ns=max(0, case.stall_ns - sooner_ns))
        assert bound(less, case.vfs).fluid <= bound(case, case.vfs).fluid


def _changed(case: Case, **fields: Any) -> Case:
    return Case(**{name: fields.get(name, getattr(case, name)) for name in Case.__struct_fields__})


def test_the_closed_form_by_hand() -> None:
    # 100 bytes a device come at 10 a second and go at 4; one second late: 10 late, 90 x (1 - 4/10) left.
    case = Case(
        vfs=2,
        channels=2,
        state_bytes=99,
        buffer_bytes=1,
        config_bytes=1,
        load_rate=4,
        send_rate=10,
        stall_ns=NS,
    )
    assert bound(case, 1).fluid == 10 + 90 * Fraction(6, 10)
    # Of two: the first is drained all the while, the last 90 bytes have two devices drained: 1 - 8/10.
    assert bound(case, 2).fluid == 10 + 100 * Fraction(6, 10) + 90 * Fraction(2, 10)


def test_the_search_that_the_command_shows_agrees() -> None:
    rows = searched()
    assert rows
    for row in rows:
        assert row.worst_bytes == row.schedule_bytes <= row.closed_form_bytes


# -- certificate, cap and claim ----------------------------------------------------------------------


def test_a_cap_is_enough_from_the_bound_on() -> None:
    case = Case(vfs=2, channels=4, state_bytes=10 * MIB, buffer_bytes=MIB, load_rate=10**8)
    certificate = certify(case, [])
    worst = 10 * MIB + CONFIG_BYTES
    assert certificate.worst_device_queued_bytes == worst
    assert certificate.worst_queued_bytes == 2 * worst
    assert certificate.proof.exact
    assert judge_cap(certificate, worst).enough
    assert not judge_cap(certificate, worst - 1).enough
    assert "too small" in judge_cap(certificate, worst - 1).sentence
    assert certificate.advice_bytes == sum(part.qemu_bytes for part in certificate.advice) > 2 * worst
    limited = certify(_changed(case, send_rate=2 * 10**8, stall_ns=NS // 100), [])
    between = judge_cap(limited, limited.proof.upper_device_bytes - 1)
    assert not between.enough
    assert "may be too small" in between.sentence


def test_the_claim_holds_for_large_states_and_not_for_small_ones() -> None:
    def rulings(state_bytes: int) -> list[str]:
        case = Case(vfs=1, channels=8, state_bytes=state_bytes, buffer_bytes=MIB, load_rate=1)
        return [row.ruling for row in rule(certify(case, [])).rulings]

    assert rulings(400 * MIB) == ["holds", "holds", "refuted"]
    assert rulings(4 * MIB) == ["holds", "open", "refuted"]
    assert rulings(4000) == ["refuted", "refuted", "refuted"]


# -- runs --------------------------------------------------------------------------------------------


def test_a_forced_run_reaches_the_certificate_to_the_byte() -> None:
    case = Case(vfs=3, channels=2, state_bytes=3 * MIB + 17, buffer_bytes=300_000, load_rate=1)
    rows = force(case, None, lambda _: None)
    worst = 3 * MIB + 17 + CONFIG_BYTES
    assert [row.cap_bytes for row in rows] == [None, worst, worst - 1]
    for row in rows:
        assert row.late
        assert row.as_certified, row
    for row in rows[:2]:
        assert row.outcome == "completed"
        assert (row.observed.device_bytes, row.observed.all_bytes) == (worst, 3 * worst)
    assert rows[2].outcome == "failed-clean"
    assert f"over the cap of {worst - 1}" in rows[2].error


def test_a_forced_run_of_a_qemu_meets_its_cap_to_the_byte() -> None:
    case = Case(vfs=1, channels=3, state_bytes=3 * MIB, buffer_bytes=MIB, load_rate=1)
    rows = [row for row in force(case, str(QEMU_11), lambda _: None) if row.ends != "mock to mock"]
    worst = 3 * MIB + CONFIG_BYTES
    assert [row.cap_bytes for row in rows] == [None, worst, worst - 1]
    for row in rows:
        assert row.late, row
        assert row.as_certified, row


def test_a_forced_run_of_a_qemu_without_a_cap_is_seen_in_its_traces() -> None:
    case = Case(vfs=2, channels=3, state_bytes=2 * MIB, buffer_bytes=MIB, load_rate=1)
    row = next(row for row in force(case, BINARY, lambda _: None) if row.ends != "mock to mock")
    worst = 2 * MIB + CONFIG_BYTES
    assert row.as_certified, row
    assert (row.cap_bytes, row.observed.device_bytes, row.observed.all_bytes) == (None, worst, 2 * worst)


def test_what_a_run_had_queued(tmp_path: Path) -> None:
    config = MigrationConfig(
        vfs=2,
        channels=3,
        state_bytes=2 * MIB,
        profile="unlimited",
        ram_bytes=0,
        capture="none",
        load_late=True,
    )
    assert run_migration(config, tmp_path).outcome == "completed"
    observed = observe(tmp_path)
    assert observed.came_first
    assert observed.device_bytes == observed.received_bytes
    assert observed.all_bytes == 2 * observed.received_bytes if observed.received_bytes else False


def test_what_a_run_over_the_main_channel_had_queued_is_not_known(tmp_path: Path) -> None:
    config = MigrationConfig(
        vfs=1, channels=1, state_bytes=MIB, transfer="main", profile="unlimited", ram_bytes=0, capture="none"
    )
    assert run_migration(config, tmp_path).outcome == "completed"
    observed = observe(tmp_path)
    assert observed.device_bytes is observed.all_bytes is None
    assert "no multifd buffers" in observed.why or "took no multifd buffers" in observed.why


def test_a_run_beside_its_certificate() -> None:
    certificate = certify(Case(vfs=1, channels=1, state_bytes=100, buffer_bytes=10, load_rate=1), [])
    worst = certificate.worst_device_queued_bytes

    def beside(device: int, total: int, received: int) -> tuple[str, bool]:
        observed = Observed(
            device_bytes=device, all_bytes=total, received_bytes=received, received_all_bytes=received
        )
        return observed.beside(certificate)

    assert beside(worst, worst, worst) == (
        f"observed: {worst} bytes of one device, {worst} of all, 100.0% of the worst case",
        False,
    )
    assert "another case" in beside(worst + 1, worst + 1, worst + 1)[0]
    assert beside(worst, worst + 1, worst)[1]
    assert Observed(why="no trace").beside(certificate) == ("observed: nothing known: no trace", False)


# -- the command -------------------------------------------------------------------------------------


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = execute(["bench", "cap", *arguments])
        output, errors = capsys.readouterr()
        assert "Traceback" not in output + errors
        return code, output, errors

    return run


def test_the_command_as_json(said: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    config = MigrationConfig(
        vfs=1, channels=2, state_bytes=MIB, profile="opaque", ram_bytes=0, capture="none"
    )
    run_migration(config, tmp_path)
    code, output, _ = said(
        *("--vfs", "1", "--channels", "2", "--state-size", "1MiB", "--queue-cap", "1MiB"),
        *("--force", "--force-size", "64KiB", "--json", "--observed", str(tmp_path)),
    )
    assert code == 0
    found = json.loads(output)
    assert found["schema"] == "vfmig.bench.cap/1"
    assert found["worst_queued_bytes"] == found["worst_device_queued_bytes"] == MIB + CONFIG_BYTES
    assert 0 < found["observed_bytes"] <= found["worst_queued_bytes"]
    assert found["advice_bytes"] > found["worst_queued_bytes"]
    assert found["schedule"]["events"][-1]["queued_bytes"] == found["worst_queued_bytes"]
    assert found["proof"]["exact"]
    assert found["queue_cap"]["enough"] is False
    assert [row["as_certified"] for row in found["forced"]] == [True] * 3


def test_the_command_for_a_person(said: Callable[..., tuple[int, str, str]]) -> None:
    code, output, _ = said("--send-rate", "1GB/s", "--stall", "50")
    assert code == 0
    assert "worst case: " in output
    assert "the bound is" in output
    assert "Avihai Horon" in output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--load-rate 0", "less than 1 byte"),
        ("--load-rate fast", "is not a"),
        ("--state-size 1GiB --buffer 1", "take a larger buffer"),
        ("--qemu /bin/true", "--qemu is for --force"),
        ("--force --buffer 2MiB", "buffers of 2097152 bytes"),
        ("--observed /nowhere", "does not exist"),
        ("--stall -1", "0<=x"),
    ],
)
def test_wrong_use(said: Callable[..., tuple[int, str, str]], arguments: str, sentence: str) -> None:
    code, output, errors = said(*arguments.split())
    assert code == 2
    assert sentence in errors
    assert not output


def test_a_folder_that_is_no_run(said: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, output, _ = said("--vfs", "1", "--observed", str(tmp_path))
    assert code == 0
    assert "has no target.jsonl" in output
    (tmp_path / "target.jsonl").write_text("nonsense\n")
    code, _, errors = said("--vfs", "1", "--observed", str(tmp_path))
    assert code == 4
    assert "not a journal line" in errors
