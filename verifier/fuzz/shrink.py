# SPDX-License-Identifier: GPL-2.0-or-later
"""The least scene that fails as a given one does: less trouble, smaller, and with fewer choices.

Greedy: whatever is simpler and fails alike is kept, until nothing simpler does or the tries are used up.
First the scene, with other schedules as well, for a simpler scene has other ones; then its schedule; then
what else goes with that schedule.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

import msgspec

from mockdev.device.image import PAGE_SIZE
from verifier.fuzz.failure import PRODUCTION, Failure, examine
from verifier.simulation.link import LinkModel
from verifier.simulation.migration import Parts
from verifier.simulation.scene import FREE, LINKS, Scene
from verifier.simulation.schedule import trimmed

TRIES_MAX = 3000
_TURNS_TRIED = 200
_SEEDS_AT_FIRST = 30
_SEEDS = 6  # schedules tried for each simpler scene
_PLAIN = LinkModel()
# What each kind of trouble means for a link: these fields are as in a plain one when it is off.
_OF_LINK = {
    "late": ("delay_ns", "jitter_ns"),
    "slow": ("byte_ns",),
    "window": ("window",),
    "parts": ("parts",),
    "stall": ("stall_at", "stall_ns"),
}


class Shrunk(msgspec.Struct, frozen=True):
    """The least scene that was found, how it fails, who is late in it, and how many scenes were played."""

    scene: Scene
    failure: Failure
    late: tuple[str, ...]
    tries: int


def shrink(scene: Scene, failure: Failure, parts: Parts = PRODUCTION, tries_max: int = TRIES_MAX) -> Shrunk:
    """See the head of this file. `scene` fails with `failure`."""
    return _Shrinker(scene, failure, parts, tries_max).shrink()


class _Shrinker:
    def __init__(self, scene: Scene, failure: Failure, parts: Parts, tries_max: int) -> None:
        self.scene = scene
        self.failure = failure
        self.tries = 0
        self._parts = parts
        self._tries_max = tries_max

    def shrink(self) -> Shrunk:
        if self.scene.schedule is None:
            self._simplify(_SEEDS)
            self._fix_schedule()
        if self.scene.schedule is not None:
            before = None
            while before != self.scene and self.tries < self._tries_max:
                before = self.scene
                self._shorten()
                self._simplify(1)
        _, came = examine(self.scene, self._parts, record=True)
        return Shrunk(self.scene, self.failure, came.late if came is not None else (), self.tries)

    def _fails(self, scene: Scene) -> bool:
        """Whether a scene fails alike; then it is ours."""
        if self.tries >= self._tries_max:
            return False
        self.tries += 1
        failure, _ = examine(scene, self._parts)
        if failure is None or failure.key != self.failure.key:
            return False
        self.scene, self.failure = scene, failure
        return True

    # -- the scene -----------------------------------------------------------------------------------

    def _simplify(self, seeds: int) -> None:
        """Try everything simpler, from the start again whenever something was."""
        again = True
        while again:
            again = False
            for step in _STEPS:
                # What is worth most is tried longest.
                many = seeds > 1 and step in (_without_trouble, _without_kinds)
                while self._one(step, _SEEDS_AT_FIRST if many else seeds):
                    again = True

    def _one(self, step: Callable[[Scene], Iterator[Scene]], seeds: int) -> bool:
        for simpler in step(self.scene):
            if simpler == self.scene:
                continue
            for seed in range(seeds):
                # The one that failed first, then small ones.
                if self._fails(simpler if not seed else replace(simpler, seed=seed)):
                    return True
        return False

    # -- the schedule --------------------------------------------------------------------------------

    def _fix_schedule(self) -> None:
        """From now on the schedule is a list. An exception leaves none behind, and the seed has to do."""
        _, came = examine(self.scene, self._parts, record=True)
        if came is not None:
            self._fails(replace(self.scene, schedule=came.schedule))

    def _shorten(self) -> None:
        """Fewer choices: blocks of them become the first one or are left out, halves first."""
        if self._try(()) or self._call_off_later():
            return
        size = len(self._choices)
        while size:
            at = 0
            while at < len(self._choices):
                choices = self._choices
                behind = choices[at + size :]
                zeros = (0,) * min(size, len(choices) - at)
                zeroed = any(choices[at : at + size]) and self._try((*choices[:at], *zeros, *behind))
                if zeroed or not self._try((*choices[:at], *behind)):
                    at += size
            size //= 2
        for at in range(len(self._choices) - 1, -1, -1):
            choices = self._choices
            if at < len(choices) and choices[at] > 1:
                self._try((*choices[:at], 1, *choices[at + 1 :]))

    def _call_off_later(self) -> bool:
        """That somebody calls it off late needs no schedule if he waits long enough."""
        cancel = self.scene.cancel
        return cancel is not None and any(
            self._fails(replace(self.scene, cancel=replace(cancel, turns=turns), schedule=()))
            for turns in range(_TURNS_TRIED)
        )

    @property
    def _choices(self) -> tuple[int, ...]:
        return self.scene.schedule or ()

    def _try(self, choices: tuple[int, ...]) -> bool:
        shorter = trimmed(choices)
        return shorter != self._choices and self._fails(replace(self.scene, schedule=shorter))


# -- simpler scenes, the most promising first --------------------------------------------------------------


def _migration(scene: Scene, **values: Any) -> Scene:
    return replace(scene, migration=msgspec.structs.replace(scene.migration, **values))


def _without_trouble(scene: Scene) -> Iterator[Scene]:
    """What befalls it from outside, and each fault."""
    yield replace(scene, breaks=None)
    yield replace(scene, cancel=None)
    yield replace(scene, guest_writes=())
    faults = scene.migration.faults
    for fault in faults:
        yield _migration(scene, faults=tuple(other for other in faults if other != fault))


def _without_kinds(scene: Scene) -> Iterator[Scene]:
    yield replace(scene, links=())
    for kind in LINKS:
        values = {name: getattr(_PLAIN, name) for name in _OF_LINK[kind]}
        yield replace(scene, links=tuple(replace(link, **values) for link in scene.links))
    yield replace(scene, profile=FREE)
    for kind in sorted(scene.kinds & {"ranked", "yields"}):
        yield replace(scene, kinds=scene.kinds - {kind})


def _plainer(scene: Scene) -> Iterator[Scene]:
    """What a migration has in the plainest case."""
    plain = {
        "precopy_bytes": 0,
        "switchover_ack": False,
        "queue_cap_bytes": None,
        "load_threads": None,
        "in_flight_max": None,
        "zero_pages": "multifd",
        "transfer": "multifd",
        "dialect": "10.0",
    }
    for name, value in plain.items():
        yield _migration(scene, **{name: value})


def _plainer_faults(scene: Scene) -> Iterator[Scene]:
    """Of the first device, and at an earlier byte."""
    faults = scene.migration.faults
    for number, fault in enumerate(faults):
        place, at, byte = fault.partition("@")
        others = [re.sub(r"\.vf\d+", ".vf0", fault)]
        others += [f"{place}@{less}" for less in _less(int(byte), 0)] if at else []
        for other in others:
            yield _migration(scene, faults=(*faults[:number], other, *faults[number + 1 :]))


def _fewer_devices(scene: Scene) -> Iterator[Scene]:
    """Those of the last devices, unless a fault is for one of them."""
    for vfs in range(1, scene.migration.vfs):
        if not any(f".vf{number}." in fault for fault in scene.migration.faults for number in range(vfs, 30)):
            yield _migration(scene, vfs=vfs)


def _fewer_channels(scene: Scene) -> Iterator[Scene]:
    for channels in range(1, scene.migration.channels):
        if scene.breaks is None or scene.breaks.channel < channels:
            yield replace(_migration(scene, channels=channels), links=scene.links[: 2 + 2 * channels])


def _smaller(scene: Scene) -> Iterator[Scene]:
    config = scene.migration
    for size in _less(config.state_bytes, 2):
        if config.precopy_bytes < size:
            yield _migration(scene, state_bytes=size)
    for pages in _less(config.ram_bytes // PAGE_SIZE, 1):
        yield _fitting(_migration(scene, ram_bytes=pages * PAGE_SIZE))
    for name in ("buffer_bytes", "chunk_bytes"):  # one of them is simpler than many
        yield _migration(scene, **{name: config.state_bytes})
    for name in ("precopy_bytes", "queue_cap_bytes"):
        for less in _less(getattr(config, name) or 0, 1):
            yield _migration(scene, **{name: less})
    yield replace(scene, initial_bytes=max(1, config.precopy_bytes))
    yield replace(scene, increment_bytes=max(1, config.precopy_bytes))


def _fitting(scene: Scene) -> Scene:
    """Guest writes go to pages that are there."""
    pages = scene.migration.ram_bytes // PAGE_SIZE
    writes = tuple((min(page, pages - 1), turns) for page, turns in scene.guest_writes)
    return replace(scene, guest_writes=writes)


def _sooner(scene: Scene) -> Iterator[Scene]:
    """What comes from outside: fewer of it, at rounder times."""
    writes = scene.guest_writes
    for number, (page, turns) in enumerate(writes):
        yield replace(scene, guest_writes=writes[:number] + writes[number + 1 :])
        for less in _less(turns, 0):
            yield replace(scene, guest_writes=(*writes[:number], (page, less), *writes[number + 1 :]))
    if scene.cancel is not None:
        for less in _less(scene.cancel.turns, 0):
            yield replace(scene, cancel=replace(scene.cancel, turns=less))
    if scene.breaks is not None:
        yield replace(scene, breaks=replace(scene.breaks, unnoticed=False))
        for less in _less(scene.breaks.at, 0):
            yield replace(scene, breaks=replace(scene.breaks, at=less))
    for number, link in enumerate(scene.links):
        if link != _PLAIN:
            yield replace(scene, links=(*scene.links[:number], _PLAIN, *scene.links[number + 1 :]))


def _cheaper(scene: Scene) -> Iterator[Scene]:
    for place in fields(scene.profile):
        if place.name != "name" and getattr(scene.profile, place.name) != getattr(FREE, place.name):
            yield replace(scene, profile=replace(scene.profile, **{place.name: getattr(FREE, place.name)}))


def _honest(scene: Scene) -> Iterator[Scene]:
    """`kinds` names what is there, for whoever reads it."""
    kinds = set(scene.kinds)
    for kind in LINKS:
        if all(
            getattr(link, name) == getattr(_PLAIN, name) for link in scene.links for name in _OF_LINK[kind]
        ):
            kinds.discard(kind)
    config = scene.migration
    gone = {
        "uneven": not any(link.jitter_ns for link in scene.links),
        "costs": scene.profile.free,
        "short": not any("short=" in fault for fault in config.faults),
        "stalls": not any("stall=" in fault for fault in config.faults),
        "device-fault": not any("stall=" not in f and "short=" not in f for f in config.faults),
        "cap": config.queue_cap_bytes is None,
        "few-loaders": config.load_threads is None,
        "few-sends": config.in_flight_max is None,
        "guest": not scene.guest_writes,
        "break": scene.breaks is None,
        "cancel": scene.cancel is None,
    }
    yield replace(scene, kinds=frozenset(kinds - {kind for kind, is_gone in gone.items() if is_gone}))


def _less(value: int, least: int) -> Iterator[int]:
    """From the least on: a few steps from it to the value."""
    seen = set()
    for less in (least, value // 4, value // 2, value * 3 // 4, value - 1):
        if least <= less < value and less not in seen:
            seen.add(less)
            yield less


_STEPS = (
    _without_trouble,
    _without_kinds,
    _plainer,
    _plainer_faults,
    _fewer_devices,
    _fewer_channels,
    _smaller,
    _sooner,
    _cheaper,
    _honest,
)
