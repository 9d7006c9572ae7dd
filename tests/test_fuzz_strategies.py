# SPDX-License-Identifier: GPL-2.0-or-later
"""What the strategies draw is what they say, and properties of whole scenes and of streams."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from mockdev.device.faults import NO_FAULTS, Faults
from mockdev.errors import RemoteProtocolError
from mockdev.faultspec import FAULTS, Fault, parse
from mockdev.runtime.config import MigrationConfig
from mockdev.wire.channel import MAIN, MULTIFD, Course, Event, Phase, Table
from mockdev.wire.framer import multifd_channel
from mockdev.wire.frames import Syntax
from mockdev.wire.mainstream import main_channel
from tests.drive import Cut, frames_of
from tests.examples import examples
from tests.test_history_decode import watch
from tests.variations import VARIATIONS
from verifier.fuzz.entry import Entry, read_entry, write_entry
from verifier.fuzz.failure import PRODUCTION, Failure, examine
from verifier.fuzz.search import entry_of
from verifier.fuzz.shrink import shrink
from verifier.fuzz.strategies import (
    Stream,
    channel_streams,
    configurations,
    fault_texts,
    faults,
    joined,
    main_streams,
    mutated,
    scenes,
)
from verifier.history.observation import Broken
from verifier.simulation.migration import Parts
from verifier.simulation.scene import Scene

KEPT = Path("runs") / "scenes"  # where a failing example goes
SHRINK_TRIES = 1000


@given(configurations())
def test_configurations_can_be_run(config: MigrationConfig) -> None:
    config.check()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.form)
@settings(max_examples=examples(10))
@given(data=st.data())
def test_every_line_of_the_table_is_drawn(fault: Fault, data: st.DataObject) -> None:
    text = data.draw(fault_texts(faults=(fault,)))
    spec = parse(text)
    assert (spec.text, spec.place) == (text, fault.where)
    assert spec.what == fault.name


@given(faults())
def test_faults_of_a_device_are_more_than_none_at_times(drawn: Faults) -> None:
    event("none" if drawn == NO_FAULTS else "some")
    assert all(strike.offset >= 0 for strike in drawn.strikes)


def play(count: int, path: Path, parts: Parts = PRODUCTION) -> None:
    """Play so many scenes. One that fails is made small, its schedule too, and kept."""
    failing: list[tuple[Scene, Failure]] = []

    @settings(max_examples=examples(count))
    @given(scenes())
    def hold(scene: Scene) -> None:
        failure, came = examine(scene, parts)
        event("no outcome" if came is None else f"{came.outcome}")
        if failure is not None:
            failing.append((scene, failure))
        assert failure is None

    try:
        hold()
    except AssertionError as error:
        shrunk = shrink(*failing[-1], parts, SHRINK_TRIES)
        write_entry(path, entry_of(shrunk))
        late = "; ".join(shrunk.late) or "nobody is late"
        raise AssertionError(f"{shrunk.failure}: {late}\nvfmig fuzz --simulate --replay {path}") from error


def test_no_scene_fails() -> None:
    play(60, KEPT / "found-by-hypothesis.json")


def test_a_scene_that_fails_is_made_small_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    parts = VARIATIONS["does-not-wait"]
    with pytest.raises(AssertionError) as raised:
        play(100, path, parts)
    entry = read_entry(path)
    assert f"vfmig fuzz --simulate --replay {path}" in str(raised.value)
    assert str(raised.value).startswith(str(entry.failure))
    migration, schedule = entry.scene.migration, entry.scene.schedule
    assert (migration.vfs, migration.channels, entry.scene.links, schedule) == (1, 1, (), ())
    assert examine(entry.scene, parts)[0] == entry.failure
    assert examine(entry.scene)[0] is None


@settings(max_examples=examples(20))
@given(scenes(troubled=False))
def test_where_nothing_is_in_the_way_it_completes(scene: Scene) -> None:
    assert not scene.troubled
    _, came = examine(scene)
    assert came is not None
    assert came.outcome == "completed"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scene=scenes())
def test_every_scene_can_be_kept(scene: Scene, tmp_path: Path) -> None:
    entry = Entry(failure=Failure("violation", ("OC-1",)), scene=scene)
    write_entry(tmp_path / "a.json", entry)
    assert read_entry(tmp_path / "a.json") == entry


# -- streams -------------------------------------------------------------------------------------------


def syntax_of(kind: str) -> Syntax:
    return multifd_channel() if kind == "channel" else main_channel()


STREAMS = {"channel": (channel_streams(), MULTIFD), "main": (main_streams(), MAIN)}
legal = st.sampled_from(sorted(STREAMS)).flatmap(lambda kind: st.tuples(st.just(kind), STREAMS[kind][0]))
changed = st.sampled_from(sorted(STREAMS)).flatmap(
    lambda kind: st.tuples(st.just(kind), mutated(STREAMS[kind][0]))
)


def take_all(kind: str, data: bytes) -> Course:
    """The tables' way through a stream. RemoteProtocolError, Cut: it cannot be taken."""
    table: Table = STREAMS[kind][1]
    course = Course(table, kind, local=False)
    for frame in frames_of(syntax_of(kind), data):
        course.take_frame(frame)
    return course


@given(legal)
def test_a_legal_stream_is_taken_whole(case: tuple[str, Stream]) -> None:
    kind, stream = case
    course = take_all(kind, joined(stream))
    assert course.phase is (Phase.OPEN if kind == "channel" else Phase.DESCRIBED)
    course.take(Event.CLOSE)


@settings(max_examples=examples(400))
@given(changed)
def test_a_changed_stream_is_read_to_where_it_can_be_and_no_further(case: tuple[str, Stream]) -> None:
    """Endpoint and judge run one syntax in two ways: both stop at the same byte, and for the same reason."""
    kind, stream = case
    data = joined(stream)
    broken: RemoteProtocolError | None = None
    cut = False
    try:
        frames_of(syntax_of(kind), data)
    except RemoteProtocolError as error:
        broken = error
    except Cut:
        cut = True
    watched = watch(data)
    watched.decoder.data(0, len(data), 0)
    watched.decoder.end("fin", 1)
    decoder = watched.decoder
    assert decoder.decoded + decoder.lost + decoder.undecodable == len(data)
    seen = [event.error for event in watched.events(Broken) if isinstance(event, Broken)]
    if broken is not None and decoder.lane.role.value in ("main", "channel"):
        assert [(error.message, error.offset) for error in seen] == [(broken.message, broken.offset)]
    elif broken is None and not cut:
        assert seen == []
        assert decoder.undecodable == 0 or not data
