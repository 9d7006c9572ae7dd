# SPDX-License-Identifier: GPL-2.0-or-later
"""What it means that a scene fails: `examine`."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Literal

import msgspec

from mockdev.errors import LocalProtocolError, VfmigError
from verifier.simulation.migration import Parts, Simulated, simulate
from verifier.simulation.scene import Scene
from verifier.verdict import Standing

PRODUCTION = Parts()
Kind = Literal["violation", "exception", "not-completed", "not-held"]


class Failure(msgspec.Struct, frozen=True):
    """How a scene fails. Two scenes fail alike when kind and what are the same; message is for a person.

    violation: what is the ids of the invariants. exception: an error of ours; its type and where it came up.
    not-completed: nothing was in the way, and still the outcome is this one. not-held: it completed, and the
    judge could not say that these invariants hold.
    """

    kind: Kind
    what: tuple[str, ...]
    message: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """The same for all that fail alike."""
        return (self.kind, *self.what)

    def shows(self, other: Failure) -> bool:
        """Whether this is that failure, or one by which more invariants are broken."""
        return self.kind == other.kind and set(other.what) <= set(self.what)

    def __str__(self) -> str:
        what = ", ".join(self.what)
        return what if self.kind == "violation" else f"{self.kind} ({what})"


def examine(
    scene: Scene,
    parts: Parts = PRODUCTION,
    *,
    record: bool = False,
    folder: Path | None = None,
) -> tuple[Failure | None, Simulated | None]:
    """Play a scene. How it fails, if it does; what it came to, unless an exception came out of it."""
    try:
        came = simulate(scene, parts, record=record, folder=folder)
    except Exception as error:
        return _exception(error), None
    return failure_of(came), came


def failure_of(came: Simulated) -> Failure | None:
    """How a scene that was played fails, if it does."""
    report = came.report
    if report.violations:
        ids = tuple(sorted({violation.id for violation in report.violations}))
        return Failure("violation", ids, report.violations[0].message)
    for error in came.errors:
        if not isinstance(error, VfmigError) or isinstance(error, LocalProtocolError):
            return _exception(error)
    if came.outcome != "completed" and not came.scene.troubled:
        why = "; ".join(map(str, came.errors))
        return Failure("not-completed", (came.outcome,), why)
    if came.outcome == "completed" and report.standing is not Standing.HOLDS:
        unknown = tuple(sorted({unknown.id for unknown in report.unknown}))
        return Failure("not-held", unknown, report.unknown[0].why if report.unknown else "")
    return None


def _exception(error: BaseException) -> Failure:
    """The error and the innermost place of it that is ours."""
    steps = traceback.extract_tb(error.__traceback__)
    place = f"{Path(steps[-1].filename).name}: {steps[-1].name}" if steps else ""
    return Failure("exception", (type(error).__name__, place), str(error))
