# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of the VM at each end, as far as that end, or who watched it, says.

Four may speak of an end: the run's record, the journal of a mock endpoint, QEMU's trace log, and its QMP
events; the first that does is believed. A supervisor's journal ends with its QEMU's exit, which tells nothing
of the VM.
"""

from __future__ import annotations

from typing import NamedTuple

from mockdev.journal import End, Mark
from verifier.history.observation import EndRecord, QmpEvent, Said, StatusTrace, VmTrace

_WATCHED = ("crashed", "killed")
_FINAL = ("completed", "failed", "cancelled")
_SHUTDOWN = "shutdown"
TELLING = frozenset((End, EndRecord, Mark, QmpEvent, StatusTrace, VmTrace))
"""The lines that may tell of an end."""


class Ending(NamedTuple):
    """How one end came out. said: who says so, as witnesses.

    outcome: completed, failed, cancelled; crashed: it left no word; killed: it did not end.
    runs: whether the VM may run there; None when nobody knows. The process that crashed runs nothing.
    """

    outcome: str
    runs: bool | None
    error: str
    said: tuple[Said, ...]

    @property
    def own_word(self) -> bool:
        """Whether the end itself lived to tell."""
        return self.outcome not in _WATCHED


class Endings:
    """Both ends of one migration. take() what is said, in order; then ask."""

    def __init__(self) -> None:
        self._records: dict[str, Said] = {}
        self._ends: dict[str, Said] = {}
        self._status: dict[str, Said] = {}
        self._vm: dict[str, Said] = {}
        self._qmp_status: dict[str, Said] = {}
        self._qmp_vm: dict[str, Said] = {}
        self._took_over = False  # a mock target let the VM run

    def take(self, said: Said, *, supervised: bool) -> None:
        """A line that may tell of an end. supervised: a supervisor wrote this journal."""
        line = said.line
        if isinstance(line, End):
            if not supervised:
                self._ends[said.role] = said
        elif isinstance(line, Mark):
            self._took_over |= said.role == "target" and line.name == "resume"
        elif isinstance(line, EndRecord):
            self._records[said.role] = said
        elif isinstance(line, StatusTrace):
            self._status[said.role] = said
        elif isinstance(line, VmTrace) and line.event == "vfio_vmstate_change" and line.reason != _SHUTDOWN:
            self._vm[said.role] = said
        elif isinstance(line, QmpEvent):
            if line.event == "MIGRATION":
                self._qmp_status[said.role] = said
            elif line.event in ("STOP", "RESUME"):
                self._qmp_vm[said.role] = said

    def of(self, role: str) -> Ending | None:
        """How this end came out; None when nobody says."""
        record = self._records.get(role)
        if record is not None and isinstance(record.line, EndRecord):
            line = record.line
            own = self.own_word(role)
            took_over = (
                own.outcome == "completed" if own is not None else self._took_over and role == "target"
            )
            ended_later = took_over and line.outcome in ("crashed", "cancelled")
            sure = line.outcome != "killed" and not ended_later
            if role == "source" and line.outcome in _FINAL and not line.runs and own is not None and own.runs:
                sure = False  # who watched may have looked before it let its VM run again
            said = (record,) if own is None else (record, *own.said)
            return Ending(line.outcome, line.runs if sure else None, line.error, said)
        return self.own_word(role)

    @property
    def outcome(self) -> str | None:
        """Of the two together: the report's word, or None when one is missing or does not know.

        The lab has its own such rule (lab/outcome.py): the judge does not take it from whom it judges.
        """
        source, target = self.of("source"), self.of("target")
        if source is None or target is None:
            return None
        ends = {source.outcome, target.outcome}
        if "killed" in ends:
            return "hung"
        if "crashed" in ends:
            return "crashed"
        if ends == {"completed"}:
            return "completed"
        if source.runs is None or target.runs is None:
            return None
        if source.runs == target.runs:
            return "split-brain" if source.runs else "lost"
        return "cancelled" if "cancelled" in ends else "failed-clean"

    def own_word(self, role: str) -> Ending | None:
        """What the end itself wrote, in its journal or a log."""
        end = self._ends.get(role)
        if end is not None and isinstance(end.line, End):
            return Ending(end.line.outcome, end.line.runs, "", (end,))
        return self._by_log(role) or self._by_events(role)

    def _by_log(self, role: str) -> Ending | None:
        """From QEMU's own trace: its last status, and whether it started the VM after that or before."""
        status, vm = self._status.get(role), self._vm.get(role)
        if status is None or not isinstance(status.line, StatusTrace) or status.line.status not in _FINAL:
            return None
        outcome = status.line.status
        runs: bool | None = None
        if role == "target":
            return Ending(outcome, outcome == "completed", "", (status,))
        if vm is not None and isinstance(vm.line, VmTrace):
            runs = bool(vm.line.running)
            if not runs and outcome != "completed":  # not started again: by a failure, or as its user wishes
                runs = None
        elif outcome == "completed":
            runs = False
        said = (status,) if vm is None else (vm, status)
        return Ending(outcome, runs, "", said)

    def _by_events(self, role: str) -> Ending | None:
        """From QMP's events, in the same way. Who listened from later on has no RESUME of the VM's start."""
        status, vm = self._qmp_status.get(role), self._qmp_vm.get(role)
        if status is None or not isinstance(status.line, QmpEvent) or status.line.value not in _FINAL:
            return None
        outcome = status.line.value
        if role == "target":
            return Ending(outcome, outcome == "completed", "", (status,))
        runs = None if outcome != "completed" else False
        if vm is not None and isinstance(vm.line, QmpEvent) and vm.line.event == "RESUME":
            runs = True
        return Ending(outcome, runs, "", (status,) if vm is None else (vm, status))
