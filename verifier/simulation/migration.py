# SPDX-License-Identifier: GPL-2.0-or-later
"""`simulate`: one scene played to its end and judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from mockdev.device.device import Device
from mockdev.device.dirty import Range
from mockdev.device.faults import device_faults
from mockdev.device.image import PAGE_SIZE, Pattern
from mockdev.device.saving import Plan
from mockdev.device.timing import Firmware
from mockdev.faultspec import parse_all
from mockdev.lab.outcome import overall
from mockdev.runtime.ram import BLOCK, GuestRam, RamBlock
from mockdev.vfio.uapi import State
from verifier.invariants import INVARIANTS
from verifier.invariants.passport import Invariant
from verifier.simulation.chance import Chance
from verifier.simulation.link import Link, LinkModel
from verifier.simulation.scene import Cancel, Scene
from verifier.simulation.schedule import Late, ScheduledWorld, trimmed
from verifier.simulation.slot import Slot
from verifier.simulation.source import Source
from verifier.simulation.target import Target
from verifier.simulation.watch import ALL, Evidence, Watch
from verifier.simulation.world import START_NS, Steps, World
from verifier.verdict import Report

_IDLE_NS = 30_000_000_000
_PLAIN = LinkModel()


@dataclass(frozen=True)
class Parts:
    """What a simulated migration is made of: the production pieces, or variations of them."""

    source: type[Source] = Source
    target: type[Target] = Target
    device: type[Device] = Device


@dataclass
class Simulated:
    """What a scene came to. outcome: as vfmig.report/1 has it. steps: of the scheduler. duration_ns: virtual.

    digest: of the whole history, if it was kept. errors: what ended the source and the target, if something
    did. schedule: the choices that were made; late: who had to wait for others, in words; if it was recorded.
    """

    scene: Scene
    report: Report
    outcome: str
    steps: int
    duration_ns: int
    digest: str = ""
    errors: tuple[BaseException, ...] = ()
    schedule: tuple[int, ...] = ()
    late: tuple[str, ...] = ()


def simulate(
    scene: Scene,
    parts: Parts = Parts(),
    *,
    invariants: Sequence[type[Invariant[Any]]] = INVARIANTS,
    evidence: Evidence = ALL,
    keep: bool = False,
    record: bool = False,
    folder: Path | None = None,
) -> Simulated:
    """Play a scene. evidence: what the judge gets of it. record: also its schedule. folder: also leave it as
    an evidence folder there.
    """
    stage = _Stage(scene, parts, invariants, evidence, keep=keep or folder is not None, record=record)
    stage.play()
    return stage.result(folder)


class _Stage:
    """One scene with everything in it."""

    def __init__(
        self,
        scene: Scene,
        parts: Parts,
        invariants: Sequence[type[Invariant[Any]]],
        evidence: Evidence,
        *,
        keep: bool,
        record: bool,
    ) -> None:
        self.scene = scene
        config = scene.migration
        self.world = world = _world(scene, record=record)
        # The links draw for themselves: another schedule does not make another network.
        links = Chance(scene.seed ^ 0x11FE)
        self.watch = watch = Watch(world, links, invariants=invariants, evidence=evidence, keep=keep)
        if isinstance(world, ScheduledWorld):
            world.frames = lambda: watch.frames
        self.keep = keep
        yields = "yields" in scene.kinds
        self.patterns = [pattern(name) for name in config.devices]
        self.ram = _ram(config.ram_bytes, filled=True)
        ours, theirs = (self._devices(parts.device, role) for role in ("source", "target"))
        self.source = parts.source(world, watch, config, self._slots(ours, "source"), self.ram, yields=yields)
        self.target = parts.target(
            world,
            watch,
            config,
            self._slots(theirs, "target"),
            _ram(config.ram_bytes, filled=False),
            self.ram,
            self.patterns,
            inline=scene.profile.free and config.load_threads is None and not config.load_late,
            yields=yields,
        )
        self._connect()
        self._devices_of_source = ours
        self._befall()

    def _devices(self, make: type[Device], role: str) -> list[Device]:
        scene, config = self.scene, self.scene.migration
        firmware = Firmware(scene.profile)
        specs = parse_all(config.faults, config.vfs, config.channels)
        plan = Plan(
            precopy_bytes=config.precopy_bytes,
            initial_bytes=scene.initial_bytes,
            increment_bytes=scene.increment_bytes,
            chunk_bytes=config.chunk_bytes,
        )
        devices = []
        for number, name in enumerate(config.devices):
            memory = bytearray(config.state_bytes)
            if role == "source":
                self.patterns[number].fill(memoryview(memory))
            faults = device_faults(specs, role, number)
            devices.append(make(name, memory, firmware, plan=plan, faults=faults))
        return devices

    def _slots(self, devices: list[Device], role: str) -> list[Slot]:
        watch = self.watch
        return [Slot(self.world, lambda line: watch.say(role, line), device) for device in devices]

    def _connect(self) -> None:
        scene, world, watch = self.scene, self.world, self.watch
        models = iter(scene.links or [_PLAIN] * (2 + 2 * scene.migration.channels))

        def pair(where: str, number: int) -> tuple[Link, Link]:
            there, back = watch.connection()
            model = next(models)
            if scene.breaks is not None and scene.breaks.channel == number:
                model = replace(model, close_at=scene.breaks.at, close_unnoticed=scene.breaks.unnoticed)
            link = Link(world, watch, where, there, model)
            link.back = Link(world, watch, where if number >= 0 else "return-path", back, next(models))
            link.back.back = link
            return link, link.back

        main, back = pair("main", -1)
        channels = [pair(f"channel {number}", number)[0] for number in range(scene.migration.channels)]
        self.source.connect(main, back, channels)
        self.target.connect(main, back, channels)

    def _befall(self) -> None:
        """What comes from outside: the guest's devices write to its RAM, somebody calls the migration off."""
        scene = self.scene
        self._written: dict[Device, list[Range]] = {}
        for device in self._devices_of_source:
            self._written[device] = []
            device.dirty.source = lambda _now_ns, device=device: self._drain(device)  # type: ignore[misc]
            device.dirty.start(START_NS, PAGE_SIZE, [Range(0, scene.migration.ram_bytes)])
        if scene.guest_writes:
            self.world.spawn("guest", self._guest())
        if scene.cancel is not None:
            self.world.spawn("user", self._cancel(scene.cancel))

    def _guest(self) -> Steps:
        """Devices of the source write to pages of RAM as long as they run."""
        block = self.ram.blocks[BLOCK]
        for number, (page, turns) in enumerate(self.scene.guest_writes):
            for _ in range(turns):
                yield None
            device = self._devices_of_source[number % len(self._devices_of_source)]
            if device.state in (State.RUNNING, State.PRE_COPY):
                block.page(page * PAGE_SIZE)[:8] = number.to_bytes(8, "big")
                self._written[device].append(Range(page * PAGE_SIZE, 8))

    def _drain(self, device: Device) -> list[Range]:
        written, self._written[device] = self._written[device], []
        return written

    def _cancel(self, cancel: Cancel) -> Steps:
        for _ in range(cancel.turns):
            yield None
        (self.source if cancel.role == "source" else self.target).cancel()

    # -- the play ------------------------------------------------------------------------------------

    def play(self) -> None:
        """Until both ends are over."""
        world = self.world
        world.spawn("source", self.source.life())
        world.spawn("target", self.target.life())
        world.run()
        sides = [self.source, self.target]
        while any(not side.outcome for side in sides):
            # Nobody can go on: in time, one of them notices.
            world.now_ns += _IDLE_NS
            first = sides if self.watch.chance.one_in(2) else sides[::-1]
            next(side for side in first if not side.outcome).deadline()
            world.run()

    def result(self, folder: Path | None) -> Simulated:
        """Judge, and write down if asked."""
        scene = self.scene
        source, target = self.source, self.target
        outcome = overall(source, target)
        record = {
            "seed": scene.seed,
            "arguments": {"faults": _asked(scene)},
            "outcome": {
                "outcome": outcome,
                **{
                    side.role: {
                        "outcome": side.outcome,
                        "runs": side.runs,
                        "error": side.error,
                        "kind": "simulated",
                    }
                    for side in (source, target)
                },
            },
        }
        report = self.watch.report(record)
        digest = self.watch.digest() if self.keep else ""
        if folder is not None:
            self.watch.write_folder(folder, record)
        self.watch.close()
        world = self.world
        came = Simulated(scene, report, outcome, world.steps, world.now_ns - START_NS, digest)
        came.errors = tuple(side.group.error for side in (source, target) if side.group.error is not None)
        if isinstance(world, ScheduledWorld):
            came.schedule = trimmed(world.made)
            came.late = tuple(map(self._late, world.passed_over))
        return came

    def _late(self, late: Late) -> str:
        """In words."""
        task = late.task
        sides = [side.role for side in (self.source, self.target) if side.group is task.group]
        # What belongs to an end but not to its group bears the end's name.
        who = (
            f"the {sides[0]}'s {task.name.removeprefix(sides[0]).strip().replace('main', 'main thread')}"
            if sides
            else f"the {task.name}"
        )
        if not late.frames:
            return f"{who} went on after others that could go on, too"
        return f"{who} went on {late.frames} frame{'s'[: late.frames != 1]} late"


def _world(scene: Scene, *, record: bool) -> World:
    chance, ranked = Chance(scene.seed ^ 0x5EED), "ranked" in scene.kinds
    if record or scene.schedule is not None:
        return ScheduledWorld(chance, ranked=ranked, choices=scene.schedule)
    return World(chance, ranked=ranked)


@lru_cache(maxsize=64)
def pattern(name: str) -> Pattern:
    """What the state of the device of that name is, in every simulation."""
    return Pattern(0, name)


def _ram(size: int, *, filled: bool) -> GuestRam:
    """RAM whose every other page is zero."""
    block = RamBlock(BLOCK, memoryview(bytearray(size)))
    if filled:
        block.send_all()
        for offset in range(0, size, 2 * PAGE_SIZE):
            pattern(BLOCK).fill(block.page(offset), offset)
    return GuestRam(block)


def _asked(scene: Scene) -> list[str]:
    """What was asked to go wrong, as run.json has it."""
    faults = list(scene.migration.faults)
    if scene.cancel is not None:
        faults.append(f"{scene.cancel.role}.process:cancel")
    if scene.breaks is not None:
        where = "main" if scene.breaks.channel < 0 else f"channel.{scene.breaks.channel}"
        faults.append(f"{where}:close@{scene.breaks.at}")
    return faults
