# SPDX-License-Identifier: GPL-2.0-or-later
"""Simulated endpoints with a defect each, by the name that entries of corpora/scenes give it."""

from __future__ import annotations

from typing import Any

from mockdev.multifd.assembly import Assembly, Buffer
from mockdev.multifd.receiver import LoadPlan
from mockdev.vfio.uapi import State
from verifier.simulation.migration import Parts
from verifier.simulation.slot import Slot
from verifier.simulation.source import Source
from verifier.simulation.target import Target
from verifier.simulation.world import Steps


class GivesUp(Source):
    """As our source was: a device that refuses once to run again costs the VM."""

    def run_again(self, slot: Slot) -> Steps:
        yield from slot.set_state(State.RUNNING)


class CancelsLate(Source):
    """As our source was: it can be cancelled when the target has everything."""

    def end_stream(self) -> Steps:
        yield from super().end_stream()
        self.committed = False


class Unordered(Assembly[Any]):
    """Gives out whatever is here."""

    def check(self, idx: int, *, config: bool) -> None:
        pass

    @property
    def ready(self) -> bool:
        return bool(self._kept)

    def take(self) -> Buffer[Any]:
        self.next_idx += 1
        return self._kept.pop(min(self._kept))


class UnorderedPlan(LoadPlan[Any]):
    """Loads buffers as they come."""

    assembly_type = Unordered


class LoadsUnordered(Target):
    """Loads buffers as they come, whatever their index: seen only when one overtakes another."""

    plan_type = UnorderedPlan


class DoesNotWait(Target):
    """Runs the VM at the end of the stream, whether or not all buffers are loaded."""

    def wait_devices(self) -> Steps:
        yield from ()


VARIATIONS = {
    "gives-up": Parts(source=GivesUp),
    "cancels-late": Parts(source=CancelsLate),
    "loads-unordered": Parts(target=LoadsUnordered),
    "does-not-wait": Parts(target=DoesNotWait),
}
