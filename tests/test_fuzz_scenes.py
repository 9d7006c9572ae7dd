# SPDX-License-Identifier: GPL-2.0-or-later
"""Schedules as values, scenes made small, and those of the corpus: each still shows what it was kept for."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mockdev.errors import LocalProtocolError
from tests.variations import VARIATIONS
from verifier.check import check_path
from verifier.fuzz.entry import Entry, EntryError, read_entry, write_entry
from verifier.fuzz.failure import Failure, examine
from verifier.fuzz.search import entry_of
from verifier.fuzz.shrink import shrink
from verifier.simulation.migration import Parts, simulate
from verifier.simulation.scene import Scene, draw
from verifier.simulation.source import Source
from verifier.simulation.target import Target
from verifier.simulation.world import Steps

CORPUS = sorted((Path(__file__).parent.parent / "corpora" / "scenes").glob("*.json"))


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_a_scene_of_the_corpus_shows_its_defect_and_nothing_in_the_endpoints_as_they_are(path: Path) -> None:
    entry = read_entry(path)
    failure, _ = examine(entry.scene, VARIATIONS[entry.variation])
    assert failure is not None
    assert failure.shows(entry.failure)  # and of invariants that are younger, if they see it, too
    assert examine(entry.scene)[0] is None


def test_the_corpus_has_a_scene_for_each_defect() -> None:
    assert {read_entry(path).variation for path in CORPUS} == set(VARIATIONS)


# -- schedules -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 3, 8, 21])
def test_a_recorded_schedule_is_the_same_history_drawn_recorded_and_played_again(seed: int) -> None:
    scene = draw(seed)
    drawn, recorded = simulate(scene, keep=True), simulate(scene, keep=True, record=True)
    again = simulate(replace(scene, schedule=recorded.schedule), keep=True)
    assert recorded.schedule
    assert drawn.digest == recorded.digest == again.digest
    assert recorded.late == again.late


def test_another_schedule_is_another_history() -> None:
    scene = draw(3)
    first, second = (simulate(replace(scene, schedule=(at,)), keep=True) for at in (0, 2))
    assert first.outcome == second.outcome == "completed"
    assert first.digest != second.digest


# -- failures ------------------------------------------------------------------------------------------


class Confused(Source):
    """Breaks a rule of its own, and the migration fails for it."""

    def stop(self) -> Steps:
        self.plan.claim(0)
        yield from super().stop()


class Careless(Target):
    """Has an error that nobody foresaw, beside a fault that was asked for."""

    def load_failed(self, error: Any) -> None:
        raise KeyError(error)


class Endless(Source):
    """Never ends."""

    def stop(self) -> Steps:
        while True:
            yield None


def test_an_error_of_ours_is_a_failure_whatever_else_befell_the_scene(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failure, came = examine(draw(0), Parts(source=Confused))
    assert came is not None
    assert isinstance(came.errors[0], LocalProtocolError)
    assert failure == Failure(
        "exception", ("LocalProtocolError", "sender.py: _end_turn"), str(came.errors[0])
    )
    scene = draw(0)
    fault = (f"target.vf0.load:eio@{scene.migration.state_bytes - 1}",)
    troubled = replace(scene, migration=msgspec.structs.replace(scene.migration, faults=fault))
    assert examine(troubled)[0] is None
    failure, _ = examine(troubled, Parts(target=Careless))
    assert failure is not None
    assert failure.key == ("exception", "KeyError", "test_fuzz_scenes.py: load_failed")
    monkeypatch.setattr("verifier.simulation.world.STEPS_MAX", 5000)
    failure, came = examine(draw(0), Parts(source=Endless))
    assert came is None
    assert failure is not None
    assert "no end after" in failure.message


@pytest.mark.parametrize(
    ("variation", "seed"), [("loads-unordered", 1), ("does-not-wait", 0), ("gives-up", 54)]
)
def test_the_least_scene_fails_alike_and_has_nothing_to_spare(variation: str, seed: int) -> None:
    parts, scene = VARIATIONS[variation], draw(seed)
    failure, _ = examine(scene, parts)
    assert failure is not None
    least = shrink(scene, failure, parts)
    assert least.failure.key == failure.key
    again, came = examine(least.scene, parts)
    assert again == least.failure
    assert came is not None
    config, before = least.scene.migration, scene.migration
    assert config.vfs * config.state_bytes <= before.vfs * before.state_bytes
    assert config.channels == (2 if variation == "loads-unordered" else 1)
    assert least.scene.kinds <= ({"device-fault"} if variation == "gives-up" else {"yields"})
    assert least.scene.links == ()
    schedule = least.scene.schedule
    assert schedule is not None
    for at, choice in enumerate(schedule):  # no choice can be taken back
        if choice:
            plainer = replace(least.scene, schedule=(*schedule[:at], 0, *schedule[at + 1 :]))
            failure, _ = examine(plainer, parts)
            assert failure is None or failure.key != least.failure.key


def test_the_words_say_who_was_late_and_by_how_many_frames() -> None:
    kept = read_entry(CORPUS[0].with_name("loads-unordered-24.json"))
    came = simulate(kept.scene, VARIATIONS[kept.variation], record=True)
    assert came.late == kept.late
    assert any(re.fullmatch(r"the target's .+ went on \d+ frames late", line) for line in kept.late)
    # Nobody is late in a schedule without choices.
    assert simulate(replace(kept.scene, schedule=()), record=True).late == ()


# -- files ---------------------------------------------------------------------------------------------


def entry(scene: Scene) -> Entry:
    return Entry(failure=Failure("violation", ("OC-3",), "why"), scene=scene)


@pytest.mark.parametrize("seed", range(0, 200, 7))
def test_every_scene_that_is_drawn_can_be_kept(seed: int, tmp_path: Path) -> None:
    scene = draw(seed)
    path = tmp_path / "new" / "a.json"
    write_entry(path, entry(replace(scene, schedule=simulate(scene, record=True, invariants=()).schedule)))
    assert read_entry(path).scene == replace(scene, schedule=read_entry(path).scene.schedule)
    assert [other.name for other in path.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("where", "value", "words"),
    [
        ((), 7, "is no scene"),
        (("schema",), "vfmig.scene/2", "vfmig.scene/1"),
        (("surprise",), 1, "surprise"),
        (("scene", "kinds"), ["magic"], "no kind of trouble called magic"),
        (("scene", "migration", "vfs"), 0, "0 devices"),
        (("scene", "migration", "state_bytes"), 1 << 30, "a state of more than"),
        (("scene", "migration", "ram_bytes"), 1 << 40, "RAM"),
        (("scene", "migration", "channels"), 255, "channels"),
        (("scene", "migration", "uuid"), "none", "uuid"),
        (("scene", "migration", "faults"), ["main:close"], "only faults of devices"),
        (("scene", "migration", "faults"), ["vf0"], "WHERE:WHAT"),
        (("scene", "links"), [{}], "1 links"),
        (("scene", "schedule"), [-1], "a choice below the first"),
        (("scene", "schedule"), ["x"], "schedule"),
        (("scene", "guest_writes"), [[1 << 20, 0]], "a write of the guest"),
        (("scene", "cancel"), {"role": "nobody", "turns": 1}, "called off by nobody"),
        (("scene", "breaks"), {"channel": 99, "at": 1}, "not there"),
        (("scene", "profile", "query_ns"), -1, "less than nothing"),
        (("scene", "increment_bytes"), 0, "no bytes before the stop"),
    ],
)
def test_what_is_no_scene_is_told(where: tuple[str, ...], value: Any, words: str, tmp_path: Path) -> None:
    whole: Any = msgspec.to_builtins(entry(draw(5)))
    place = whole
    for name in where[:-1]:
        place = place[name]
    if where:
        place[where[-1]] = value
    else:
        whole = value
    path = tmp_path / "entry.json"
    path.write_bytes(msgspec.json.encode(whole))
    with pytest.raises(EntryError) as caught:
        read_entry(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_files_that_are_none_are_told(tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_bytes(b'{"schema": "vfmig')
    for name in ("missing.json", "cut.json", "."):
        with pytest.raises(EntryError):
            read_entry(tmp_path / name)
    (tmp_path / "file").touch()
    with pytest.raises(EntryError, match="cannot be written"):
        write_entry(tmp_path / "file" / "a.json", entry(draw(0)))


def test_the_evidence_of_a_failing_scene_is_judged_the_same(tmp_path: Path) -> None:
    for path in CORPUS:
        kept = read_entry(path)
        simulate(kept.scene, VARIATIONS[kept.variation], folder=tmp_path / path.stem)
        report = check_path(tmp_path / path.stem)
        assert {violation.id for violation in report.violations} >= set(kept.failure.what)


def test_an_entry_names_its_variation() -> None:
    scene = draw(0)
    failure, _ = examine(scene, VARIATIONS["does-not-wait"])
    assert failure is not None
    kept = entry_of(shrink(scene, failure, VARIATIONS["does-not-wait"], tries_max=3), "why", "does-not-wait")
    assert (kept.title, kept.variation, kept.failure.key) == ("why", "does-not-wait", failure.key)
