# SPDX-License-Identifier: GPL-2.0-or-later
"""What one simulated migration is: drawn from its seed, or put together by hand.

Swarm: each seed first draws which kinds of trouble there are at all, then how much of each. A mix of
everything in every seed would hide what only shows when something is left out.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from mockdev.device.image import PAGE_SIZE
from mockdev.device.profile import Profile
from mockdev.device.saving import Plan
from mockdev.runtime.config import MigrationConfig
from verifier.simulation.chance import Chance
from verifier.simulation.link import LinkModel, draw_link

FREE = Profile("free")
UUID = "01020304-0506-0708-090a-0b0c0d0e0f10"
_US = 1_000

# Kinds of trouble, each off in most seeds. Of links; of devices; of endpoints; of the scheduler.
LINKS = ("late", "slow", "window", "parts", "stall")
DEVICES = ("costs", "short", "stalls")
ENDS = ("cap", "few-loaders", "few-sends", "guest")
FAULTS = ("device-fault", "break", "cancel")
_FIRST = (*LINKS, *DEVICES, *ENDS, *FAULTS, "ranked", "yields")
KINDS = (*_FIRST, "uneven")  # one connection far later than the others


@dataclass(frozen=True)
class Break:
    """A connection breaks. channel: its number, -1: the main one. at: after so many bytes to the target.
    unnoticed: whoever writes when it breaks does not learn it, as with a socket that has room.
    """

    channel: int
    at: int
    unnoticed: bool = False


@dataclass(frozen=True)
class Cancel:
    """The migration is called off at one end, after so many turns of the scheduler for whoever does it."""

    role: str
    turns: int


@dataclass(frozen=True)
class Scene:
    """One migration. kinds: of trouble that are on; profile: what device commands cost; initial_bytes,
    increment_bytes: of a device's state before the stop (device/saving.py).

    links: both directions of the main connection, then those of each channel. guest_writes: DMA by devices,
    each to a page of RAM, so many turns of the scheduler after the one before. breaks, cancel: what befalls
    it from outside; the faults of devices are in migration.faults, as `vfmig run --fault` takes them.
    schedule: who goes on at each step (schedule.py); None: that is drawn from the seed.
    """

    seed: int
    migration: MigrationConfig
    kinds: frozenset[str] = frozenset()
    profile: Profile = FREE
    initial_bytes: int = Plan.initial_bytes
    increment_bytes: int = Plan.increment_bytes
    links: tuple[LinkModel, ...] = ()
    guest_writes: tuple[tuple[int, int], ...] = ()
    breaks: Break | None = None
    cancel: Cancel | None = None
    schedule: tuple[int, ...] | None = None

    @property
    def troubled(self) -> bool:
        """Whether something may rightly end the migration."""
        failing = [it for it in self.migration.faults if "stall=" not in it and "short=" not in it]
        return bool(failing or self.breaks or self.cancel or self.migration.queue_cap_bytes)


def draw(seed: int, also: Collection[str] = (), **fixed: Any) -> Scene:
    """The scene of a seed. also: kinds of trouble that are on in any case; fixed: values of MigrationConfig
    that are not drawn.
    """
    chance = Chance(seed)
    kinds = frozenset(kind for kind in _FIRST if chance.one_in(_ODDS.get(kind, 3)) or kind in also)
    migration = _migration(chance, kinds, fixed)
    faults = _device_faults(chance, kinds, migration)
    if faults and "faults" not in fixed:
        migration = msgspec.structs.replace(migration, faults=faults)
    links = tuple(draw_link(chance, kinds) for _ in range(2 + 2 * migration.channels))
    precopy = migration.precopy_bytes
    scene = Scene(
        seed,
        migration,
        kinds,
        _profile(chance, kinds),
        initial_bytes=chance.between(1, max(1, precopy)),
        increment_bytes=chance.between(max(1, precopy // 5), max(1, precopy)),
        links=links,
    )
    if "guest" in kinds:
        pages = max(1, migration.ram_bytes // PAGE_SIZE)
        writes = tuple((chance.below(pages), chance.below(40)) for _ in range(chance.between(1, 6)))
        scene = replace(scene, guest_writes=writes)
    if "break" in kinds:
        scene = replace(scene, breaks=_break(chance, migration.channels))
    if "cancel" in kinds:
        role = chance.of(("source", "target"))
        scene = replace(scene, cancel=Cancel(role, chance.below(300)))
    if "uneven" in also or chance.one_in(4):
        scene = replace(scene, kinds=kinds | {"uneven"}, links=_uneven(chance, links))
    return scene


_ODDS = {"break": 12, "cancel": 16, "device-fault": 10, "cap": 6, "yields": 2}


def _migration(chance: Chance, kinds: frozenset[str], fixed: dict[str, Any]) -> MigrationConfig:
    vfs = chance.between(1, 4)
    channels = chance.between(1, 5)
    buffer_bytes = chance.of((48, 64, 200, 256))
    buffers = chance.between(1, 8)
    state_bytes = max(2, buffers * buffer_bytes - chance.below(buffer_bytes))
    precopy = chance.below(state_bytes) if chance.one_in(3) else 0
    transfer = "main" if chance.one_in(6) else "multifd"
    values: dict[str, Any] = {
        "vfs": vfs,
        "channels": channels,
        "buffer_bytes": buffer_bytes,
        "state_bytes": state_bytes,
        "chunk_bytes": max(1, buffer_bytes * chance.between(1, 3) - chance.below(40)),
        "precopy_bytes": precopy,
        "switchover_ack": bool(precopy) and chance.one_in(2),
        "transfer": transfer,
        "dialect": chance.of(("10.0", "11.1")),
        "zero_pages": chance.of(("multifd", "legacy", "none")),
        "ram_bytes": PAGE_SIZE * chance.between(1, 5),
        "queue_cap_bytes": chance.between(4_400, 8_000) if "cap" in kinds else None,
        "load_threads": chance.between(1, vfs) if "few-loaders" in kinds else None,
        "in_flight_max": chance.between(1, channels) if "few-sends" in kinds else None,
        "uuid": UUID,
    }
    return MigrationConfig(**(values | fixed))


def _uneven(chance: Chance, links: tuple[LinkModel, ...]) -> tuple[LinkModel, ...]:
    """One connection, as often as not the main one, whose writes are far later than those of the others."""
    late = 0 if chance.one_in(2) else 2 * chance.below(len(links) // 2)
    model = replace(links[late], jitter_ns=links[late].jitter_ns + chance.between(1, 400) * 1_000_000)
    return (*links[:late], model, *links[late + 1 :])


def _break(chance: Chance, channels: int) -> Break:
    return Break(chance.below(channels + 1) - 1, chance.below(20_000), unnoticed=chance.one_in(2))


def _profile(chance: Chance, kinds: frozenset[str]) -> Profile:
    """Costs, none of them as in a real card: which of two things takes longer is what matters."""
    if "costs" not in kinds:
        return FREE
    names = (
        "save_fixed_ns",
        "load_fixed_ns",
        "suspend_initiator_ns",
        "suspend_responder_ns",
        "resume_responder_ns",
        "resume_initiator_ns",
        "query_ns",
        "config_per_function_ns",
    )
    costs = {name: chance.below(500) * _US if chance.one_in(2) else 0 for name in names}
    return Profile("drawn", gamma=chance.of((0.0, 0.5, 1.0)), eta=chance.of((0.0, 0.5)), **costs)  # type: ignore[arg-type]


def _device_faults(chance: Chance, kinds: frozenset[str], migration: MigrationConfig) -> tuple[str, ...]:
    """Faults in the words of `vfmig run --fault`."""
    faults = []
    state = migration.state_bytes
    if "short" in kinds:
        faults.append(f"source.vf{chance.below(migration.vfs)}.save:short={chance.between(1, 60)}")
    if "stalls" in kinds:
        vf, at, us = chance.below(migration.vfs), chance.below(state), chance.below(5_000)
        where = chance.of(("source.vf{}.save", "target.vf{}.load")).format(vf)
        faults.append(f"{where}:stall={us}us@{at}")
    if "device-fault" in kinds:
        vf, at = chance.below(migration.vfs), chance.below(state)
        fault = chance.of(
            (
                f"source.vf{vf}.save:eio@{at}",
                f"source.vf{vf}.save:fail@{at}",
                f"source.vf{vf}.arc.STOP_COPY:eio",
                f"target.vf{vf}.load:eio@{at}",
                f"target.vf{vf}.arc.RESUMING:eio",
                f"target.vf{vf}.arc.RUNNING_P2P:eio",
                f"target.vf{vf}.config:eio",
            )
        )
        faults.append(fault)
    return tuple(faults)
