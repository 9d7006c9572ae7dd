# SPDX-License-Identifier: GPL-2.0-or-later
"""The simulated ends are no other program: what they write and journal is what the real ones do."""

from __future__ import annotations

from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mockdev.journal import Loaded, Mark, Saved, State, read
from mockdev.runtime.config import MigrationConfig
from mockdev.wire.frames import (
    CommandItem,
    DeviceStateFrame,
    InitFrame,
    RamFrame,
    RamRecordItem,
    ReturnPathItem,
    SectionItem,
    VfioItem,
)
from tests.endpoints import SMALL, migrate
from verifier.capture.pcapng import open_capture
from verifier.history.history import History
from verifier.history.observation import Observation, Said
from verifier.simulation.migration import simulate
from verifier.simulation.scene import UUID, Scene

KIB = 1 << 10
SHAPES: list[dict[str, Any]] = [
    {},
    {"precopy_bytes": 900, "switchover_ack": True},
    {"precopy_bytes": 900, "dialect": "11.1", "switchover_ack": True},
    {"transfer": "main"},
    {"transfer": "main", "precopy_bytes": 700},
    {"zero_pages": "legacy"},
    {"zero_pages": "none", "load_threads": 1},
    {"load_late": True},
    {"queue_cap_bytes": 64 * KIB, "in_flight_max": 1},
]


class Collect:
    """The items of the main connection, what names each of the others, and what devices' packets say."""

    def __init__(self) -> None:
        self.main: list[tuple[object, ...]] = []
        self.buffers: dict[bytes, list[tuple[int, int, int]]] = defaultdict(list)
        self.kinds: dict[str, set[str]] = defaultdict(set)

    def on(self, seen: Observation) -> None:
        """One observation."""
        if isinstance(seen, Said):
            return
        event = seen.event
        self.kinds[seen.lane.role.value].add(type(event).__name__)
        if isinstance(event, SectionItem):
            self.main.append((event.tag, event.idstr, event.section_id, event.version_id))
        elif isinstance(event, VfioItem):
            self.main.append((event.tag, event.idstr, event.data_size))
        elif isinstance(event, CommandItem):
            self.main.append((event.command, event.data))
        elif isinstance(event, RamRecordItem) and not event.block:
            self.main.append((event.flags,))
        elif isinstance(event, ReturnPathItem):
            self.main.append(("back", event.type, event.data))
        elif isinstance(event, DeviceStateFrame):
            assert event.vfio is not None
            self.buffers[event.head.idstr].append((event.vfio.idx, event.payload_size, event.vfio.flags))
        elif isinstance(event, InitFrame | RamFrame):
            self.kinds["packets"].add(
                f"{type(event).__name__} {event.head.flags if isinstance(event, RamFrame) else ''}"
            )


def collected(folder: Path) -> Collect:
    """What the capture of an evidence folder holds."""
    found = Collect()
    with (
        closing(History(lambda _facts: found, one_target=True)) as history,
        open_capture(folder / "capture.pcapng") as capture,
    ):
        history.read_capture(capture)
    for buffers in found.buffers.values():
        buffers.sort()
    # The two directions of the main connection have no order between them.
    found.main.sort(key=lambda item: item[0] == "back")
    return found


def journalled(folder: Path) -> dict[str, object]:
    """What each end says it did, without times, channels and what threads may do in either order."""
    told: dict[str, object] = {}
    for role in ("source", "target"):
        lines = list(read(folder / f"{role}.jsonl"))
        # What the return path's thread marks has no order with what the main thread does.
        heard = ("pong", "switchover-ack") if role == "source" else ("pong",)
        told[f"{role} marks"] = [
            line.name for line in lines if isinstance(line, Mark) and line.name not in heard
        ]
        for kind, of in ((State, "new"), (Saved, "idx"), (Loaded, "idx")):
            for line in lines:
                if isinstance(line, kind):
                    key = f"{role} {kind.__name__} {line.device}"
                    told.setdefault(key, []).append((getattr(line, of), getattr(line, "size", 0)))  # type: ignore[attr-defined]
    return told


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)) or "plain")
def test_simulated_ends_say_what_real_ones_say(shape: dict[str, Any], tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "vfs": 3,
        "channels": 3,
        "state_bytes": 2000,
        "buffer_bytes": 256,
        "chunk_bytes": 500,
        "ram_bytes": 8 * 4096,
        "uuid": UUID,
    } | shape
    real, simulated = tmp_path / "real", tmp_path / "simulated"
    real.mkdir()
    outcome = migrate(real, **{**values, "capture": "full"})
    assert outcome.outcome == "completed", outcome
    came = simulate(Scene(1, MigrationConfig(**{**SMALL, **values})), folder=simulated)
    assert came.outcome == "completed"
    theirs, ours = collected(real), collected(simulated)
    assert ours.main == theirs.main
    assert ours.buffers == theirs.buffers
    assert ours.kinds == theirs.kinds
    assert journalled(simulated) == journalled(real)
