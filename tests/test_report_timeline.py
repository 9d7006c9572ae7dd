# SPDX-License-Identifier: GPL-2.0-or-later
"""A time line holds all that was seen, bounded and said to be so; a downtime's parts rest on evidence."""

from __future__ import annotations

from pathlib import Path

import pytest

from mockdev.journal import Loaded, Mark, Received, Saved, State
from tests.canaries.lent import lend
from tests.canaries.script import BUFFERS, DEVICES, START_NS, STEP_NS, Script, good
from verifier.check import check_path
from verifier.report import lanes as module
from verifier.report import timeline as timeline_module
from verifier.report.downtime import Part, parts_of
from verifier.report.lanes import (
    ITEMS_MAX,
    MIGRATION,
    QUEUE,
    SAVES,
    SOURCE,
    STATES,
    TARGET,
    WIRE,
    Key,
)
from verifier.report.picture import Picture, Row, picture_of
from verifier.report.timeline import Timeline, Timelines
from verifier.report.tracks import Bands, Bars, Curve, Marks


def collected(script: Script, folder: Path) -> Timeline:
    """The one migration of a script, as its check tells it."""
    script.write_folder(folder)
    timelines = Timelines()
    check_path(folder, watch=timelines.watch)
    (timeline,) = timelines.all
    return timeline


def row_of(picture: Picture, key: Key) -> Row:
    return next(row for row in picture.rows if row.key == key)


def bars(picture: Picture, key: Key) -> Bars:
    track = row_of(picture, key).track
    assert isinstance(track, Bars)
    return track


def parts(timeline: Timeline) -> dict[str, Part]:
    return {part.name: part for part in parts_of(timeline)}


def test_every_frame_is_on_the_lane_of_its_flow(tmp_path: Path) -> None:
    script = good()
    picture = picture_of(collected(script, tmp_path), ITEMS_MAX)
    channel = bars(picture, Key(WIRE, "channel 0", "frames"))
    pieces = [piece for piece in script.pieces if piece.where == "0"]
    assert len(channel) == len(pieces) + 1  # and the flow's end
    assert list(channel.starts[:-1]) == [piece.time_ns for piece in pieces]
    assert sum(channel.sizes) == sum(len(piece.data) for piece in pieces)
    state = [i for i in range(len(channel)) if picture.words[channel.words[i]].style == "buffer"]
    assert [picture.words[channel.words[i]].device for i in state] == [DEVICES[0], DEVICES[0], DEVICES[1]]
    assert [channel.indexes[i] for i in state] == [0, 2, 1]


def test_what_the_ends_say_is_on_lanes_of_their_devices(tmp_path: Path) -> None:
    picture = picture_of(collected(good(), tmp_path), ITEMS_MAX)
    groups = [row.key.group for row in picture.rows]
    assert groups == sorted(groups, key=module.GROUPS.index)
    saves = bars(picture, Key(SOURCE, DEVICES[1], SAVES))
    assert len(saves) == BUFFERS[1] + 1
    states = row_of(picture, Key(SOURCE, DEVICES[0], STATES)).track
    assert isinstance(states, Bands)
    assert states.words == ["RUNNING", "PRE_COPY", "PRE_COPY_P2P", "STOP_COPY", "STOP"]
    queue = row_of(picture, Key(TARGET, DEVICES[0], QUEUE))
    assert isinstance(queue.track, Curve)
    assert (queue.cap, queue.unit, queue.track.lasts[-1]) == (1000, "bytes", 0)
    assert queue.track.highest == 48
    marks = row_of(picture, Key(MIGRATION, TARGET, "marks")).track
    assert isinstance(marks, Marks)
    assert "resume" in marks.texts
    assert marks.texts[-1] == "ends: completed, may run the VM"


def test_marks_of_one_time_stay_in_the_order_in_which_they_were_said(tmp_path: Path) -> None:
    script = good()
    said = ("setup", "active", "completed")
    script.lines["target"][1:1] = [Mark(t=script.lines["target"][0].t, name=name) for name in said]
    picture = picture_of(collected(script, tmp_path), ITEMS_MAX)
    marks = row_of(picture, Key(MIGRATION, TARGET, "marks")).track
    assert isinstance(marks, Marks)
    assert tuple(marks.texts[1:4]) == said


def test_a_qemu_tells_of_loads_queue_and_threads_in_its_log(tmp_path: Path) -> None:
    script = good()
    lend(script)
    picture = picture_of(collected(script, tmp_path), ITEMS_MAX)
    units = {row.unit for row in picture.rows if row.key.what == QUEUE}
    assert units == {"buffers"}
    assert any(row.key.what == module.THREADS for row in picture.rows)


def test_too_many_items_become_fewer_and_nothing_is_lost_of_them(tmp_path: Path) -> None:
    timeline = collected(good(), tmp_path)
    whole = picture_of(timeline, ITEMS_MAX)
    assert whole.quantum_ns == 0
    before = {row.key: row.track for row in whole.rows if isinstance(row.track, Bars | Curve)}
    few = picture_of(timeline, 60)
    assert few.quantum_ns > STEP_NS
    after = {row.key: row.track for row in few.rows if isinstance(row.track, Bars | Curve)}
    assert sum(map(len, after.values())) <= 60 < sum(map(len, before.values()))
    assert before.keys() == after.keys()
    for key, track in before.items():
        less = after[key]
        if isinstance(track, Bars) and isinstance(less, Bars):
            assert (less.total, sum(less.sizes)) == (track.total, sum(track.sizes))
            assert (less.starts[0], max(less.ends)) == (track.starts[0], max(track.ends))
        elif isinstance(track, Curve) and isinstance(less, Curve):
            assert (less.highest, less.lasts[-1]) == (track.highest, track.lasts[-1])


def test_what_is_kept_is_bounded_while_it_is_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ITEMS_MAX", 30)
    monkeypatch.setattr(module, "MARKS_MAX", 3)
    monkeypatch.setattr(module, "STATES_MAX", 5)
    monkeypatch.setattr(module, "WORDS_MAX", 4)
    picture = picture_of(collected(good(), tmp_path), 30)
    tracks = [row.track for row in picture.rows]
    assert sum(len(track) for track in tracks if isinstance(track, Bars | Curve)) <= 30
    assert max(len(track) for track in tracks if isinstance(track, Marks)) == 3
    assert sum(len(track) for track in tracks if isinstance(track, Bands)) <= 5 + 4  # and where each began
    assert any("marks" in said for said in picture.left_out)
    assert any("states" in said for said in picture.left_out)


def test_a_line_of_another_century_does_not_stretch_the_picture(tmp_path: Path) -> None:
    script = good()
    lines = script.lines["source"]
    lines.insert(1, Mark(t=5, name="long ago"))
    lines.append(Mark(t=(1 << 62) - 1, name="in the end"))
    picture = picture_of(collected(script, tmp_path), ITEMS_MAX)
    assert picture.first_ns >= START_NS
    assert picture.last_ns < START_NS + 1000 * STEP_NS
    assert any("2 items whose time" in said for said in picture.left_out)


def test_nothing_is_collected_of_more_migrations_than_there_is_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeline_module, "TIMELINES_MAX", 0)
    good().write_folder(tmp_path)
    timelines = Timelines()
    report = check_path(tmp_path, watch=timelines.watch)
    assert report.violations == []
    assert (timelines.all, timelines.left_out) == ([], 1)


# --- downtime ---------------------------------------------------------------------------------------


def test_a_downtime_is_told_in_parts(tmp_path: Path) -> None:
    script = good()
    found = parts(collected(script, tmp_path))
    assert all(part.known for part in found.values())
    lines = [line for said in script.lines.values() for line in said]
    (stop,) = [line.t for line in lines if isinstance(line, Mark) and line.name == "stop"]
    (resume,) = [line.t for line in lines if isinstance(line, Mark) and line.name == "resume"]
    begun = [line.t for line in lines if isinstance(line, State) and line.new == "STOP_COPY"]
    saved = [line.t for line in lines if isinstance(line, Saved)]
    loaded = [line.t for line in lines if isinstance(line, Loaded) and not line.config and line.t > stop]
    config = [line.t for line in lines if isinstance(line, Received | Loaded) and line.config]
    assert found["downtime"][1:3] == (stop, resume)
    assert found["stop"][1:3] == (stop, max(t for t in begun if t < max(begun)) + STEP_NS)
    assert found["save"][1:3] == (min(begun), max(saved))
    assert found["load"].end == max(loaded)
    assert found["load"].start is not None
    assert stop < found["load"].start < min(loaded)  # what came before the stop is no part of it
    assert found["config"][1:3] == (min(config), max(config))
    assert found["resume"].end == resume
    state = [piece.time_ns for piece in script.pieces if piece.label in ("vf0.0", "vf1.2")]
    assert found["transfer"][1:3] == tuple(state)


def test_a_capture_alone_tells_only_of_the_transfer(tmp_path: Path) -> None:
    found = parts(collected(good(journals=False), tmp_path))
    assert [name for name, part in found.items() if part.known] == ["transfer"]
    assert all("unknown" not in part.about for part in found.values())


def test_journals_alone_tell_of_the_transfer_too(tmp_path: Path) -> None:
    script = good()
    script.pieces.clear()
    found = parts(collected(script, tmp_path))
    assert found["transfer"].known
    assert "journals" in found["transfer"].about


def test_clocks_that_do_not_fit_make_a_part_unknown(tmp_path: Path) -> None:
    script = good()
    script.edit("target", Mark, where={"name": "resume"}, t=START_NS + STEP_NS)
    found = parts(collected(script, tmp_path))
    assert found["downtime"].duration_ns is None
    assert "clocks" in found["downtime"].about
