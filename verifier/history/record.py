# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run says of itself in `run.json`, as far as a verdict needs it: `vfmig.run/1`.

    {"seed": 5,
     "arguments": {"faults": ["target.vf0.load:eio@2MiB"], "channels": 6, "transfer": "multifd", ...},
     "called_off": false,
     "struck": ["target.vf0.load:eio@2MiB"],
     "guest_ram": {"equal": false, "pages": 4096, "difference": "3 pages from 0x1000 on"},
     "pci": {"equal": true, "devices": 2, "difference": ""},
     "outcome": {"outcome": "lost", "downtime_ms": 274.0, "source": {"outcome": "completed", "runs": false,
                 "error": "", "kind": "qemu", "version": "10.0.2", "downtime_ms": 268}, "target": {...}}}

All but the seed may be missing. Where an end says in its journal that a fault struck (a Mark of the name
"fault"), `struck` need not. `stopped_at` is there when the run was stopped, and holds the violation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from mockdev.errors import VfmigError
from verifier.capture.opening import open_file
from verifier.history.observation import RUN_RECORD, EndRecord, Said

RECORD_BYTES_MAX = 64 << 20
NAME = "run.json"
_LAST_NS = 1 << 62
_TEXT_MAX = 2000
_FAULTS_MAX = 1024


class RecordError(VfmigError):
    """A run.json that is none; the message is a sentence."""

    environment = True


class _Arguments(msgspec.Struct):
    faults: list[str] = []
    channels: int | None = None
    transfer: str | None = None


class _End(msgspec.Struct):
    outcome: str
    runs: bool = False
    error: str = ""
    kind: str = ""
    version: str = ""
    downtime_ms: float | None = None

    @property
    def name(self) -> str:
        return f"QEMU {self.version}".strip() if self.kind == "qemu" else self.kind


class _Outcome(msgspec.Struct):
    outcome: str
    source: _End
    target: _End
    downtime_ms: float | None = None


class GuestRam(msgspec.Struct, frozen=True):
    """Whether the guest's RAM was the same on both sides, and how many pages were compared, if known.

    difference: where it was not, for a person.
    """

    equal: bool | None = None
    pages: int | None = None
    difference: str = ""


class PciState(msgspec.Struct, frozen=True):
    """Whether config space and MSI-X table of each VF, as the guest sees them, were the same on both sides.

    difference: of which devices what was not, for a person.
    """

    equal: bool | None = None
    devices: int = 0
    difference: str = ""


class _Record(msgspec.Struct):
    seed: int | None = None
    arguments: _Arguments = msgspec.field(default_factory=_Arguments)
    struck: list[str] = []
    called_off: bool = False
    guest_ram: GuestRam | None = None
    pci: PciState | None = None
    outcome: _Outcome | None = None
    stopped_at: dict[str, Any] | None = None


class RunRecord:
    """A run.json that was read. ends: what it says of each end, for the time line; endpoints: what each was.

    downtime_ms: of the run, else what a QEMU at the source says. faults: those asked for; struck: those that
    are known to have taken effect. channels, transfer: what both ends were set up with, None: not said.
    called_off: its user ended it. stopped: the run was ended from outside, because of a violation.
    """

    def __init__(self, path: Path, size: int, record: _Record) -> None:
        self.seed = record.seed
        self.faults = tuple(record.arguments.faults[:_FAULTS_MAX])
        self.struck = tuple(record.struck[:_FAULTS_MAX])
        self.channels = record.arguments.channels
        self.transfer = record.arguments.transfer
        self.called_off = record.called_off
        self.guest_ram = record.guest_ram
        self.pci = record.pci
        self.stopped = record.stopped_at is not None
        self.outcome: str | None = None
        self.downtime_ms: float | None = None
        self.endpoints: dict[str, str] = {}
        self.ends: list[Said] = []
        outcome = record.outcome
        if outcome is None:
            return
        self.outcome = outcome.outcome
        self.downtime_ms = outcome.source.downtime_ms if outcome.downtime_ms is None else outcome.downtime_ms
        for role, end in (("source", outcome.source), ("target", outcome.target)):
            if end.name:
                self.endpoints[role] = end.name
            line = EndRecord(_LAST_NS, end.outcome, end.runs, end.error[:_TEXT_MAX])
            self.ends.append(Said(role, line, str(path), 0, size, RUN_RECORD))


def record_of(content: Mapping[str, Any], name: str) -> RunRecord:
    """The record with this content, of a run that wrote no file; name: for witnesses."""
    return RunRecord(Path(name), 0, msgspec.convert(content, type=_Record))


def read_record(path: Path) -> RunRecord | None:
    """The run.json at `path`; None when there is none. RecordError: it cannot be read."""
    if not path.exists():
        return None
    try:
        with open_file(path) as file:
            raw = file.read(RECORD_BYTES_MAX)
        return RunRecord(path, len(raw), msgspec.json.decode(raw, type=_Record))
    except (VfmigError, OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} cannot be read as a run's record: {error}") from None
