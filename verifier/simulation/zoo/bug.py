# SPDX-License-Identifier: GPL-2.0-or-later
"""What a bug of the zoo is, and the migrations in which it is looked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mockdev.multifd.receiver import LoadPlan
from mockdev.multifd.sender import SendPlan
from verifier.simulation.migration import Parts
from verifier.simulation.scene import Scene, draw
from verifier.simulation.source import Source
from verifier.simulation.target import Target
from verifier.simulation.watch import Evidence

# What the judge may be given, the least first. Of two that are no more than each other, the source's first.
LEVELS: dict[str, Evidence] = {
    "capture": Evidence(frozenset(), record=False),
    "source's journal": Evidence(frozenset(("source",)), record=False),
    "target's journal": Evidence(frozenset(("target",)), record=False),
    "both journals": Evidence(record=False),
    "run record": Evidence(),
}


@dataclass(frozen=True)
class Bug:
    """A variation of one decision. title: what the faulty program does; history: what it is drawn from.

    parts: the faulty program. by: invariants that catch it. needs: the least of `LEVELS` from which they do,
    each with the capture. kinds, fixed: what is on in its migrations, and values of their configuration;
    all else is drawn.
    """

    id: str
    title: str
    history: str
    parts: Parts
    by: tuple[str, ...]
    needs: str = "capture"
    kinds: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)

    def scene(self, seed: int) -> Scene:
        """The migration of a seed, in which the bug may show."""
        return draw(seed, also=self.kinds, **self.fixed)


def source_with(plan: type[SendPlan]) -> Parts:
    """A source that decides by this plan."""

    class _Source(Source):
        plan_type = plan

    return Parts(source=_Source)


def target_with(plan: type[LoadPlan[Any]]) -> Parts:
    """A target that decides by this plan."""

    class _Target(Target):
        plan_type = plan

    return Parts(target=_Target)
