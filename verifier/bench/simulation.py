# SPDX-License-Identifier: GPL-2.0-or-later
"""How many migrations a core simulates a second, and how long judging takes beside simulating.

Every round plays the same scenes twice, judged and by no invariant, in one process and on its CPU time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import msgspec

from mockdev.vfio.mlx5_stream import RECORD_HEADER, stop_copy_size_record
from verifier.invariants import INVARIANTS
from verifier.invariants.passport import Invariant
from verifier.simulation.migration import simulate
from verifier.simulation.scene import Scene, draw

VFS, BUFFERS, CHANNELS = 4, 8, 4
_BUFFER_BYTES = 256
_CHUNK_BYTES = BUFFERS // 2 * _BUFFER_BYTES - RECORD_HEADER.size  # two a device
# Everything else is drawn: links, costs, orders of threads, cancels and broken connections too. Where a SAVE
# takes its time, the size record is read before it and makes a ninth buffer.
SHAPE: dict[str, Any] = {
    "vfs": VFS,
    "channels": CHANNELS,
    "buffer_bytes": _BUFFER_BYTES,
    "chunk_bytes": _CHUNK_BYTES,
    "state_bytes": 2 * _CHUNK_BYTES - len(stop_copy_size_record(0)),
    "transfer": "multifd",
    "precopy_bytes": 0,
    "switchover_ack": False,
    "faults": (),
}


class SimulationRow(msgspec.Struct, kw_only=True):
    """Migrations a CPU second, judged: median, lowest and highest round; and not judged.

    judging: CPU time of judging over that of simulating.
    """

    what: str
    judged_per_s: float
    lowest: float
    highest: float
    unjudged_per_s: float
    judging: float


def measure(*, scenes: int, rounds: int, on_progress: Callable[[str], None]) -> list[SimulationRow]:
    """A row for scenes of one shape, and one for those that `vfmig fuzz --simulate` draws."""
    shaped = [draw(seed, **SHAPE) for seed in range(scenes)]
    rows = []
    for what, played in (
        (f"{VFS} VFs, {BUFFERS} buffers each, {CHANNELS} channels", shaped),
        ("as fuzz --simulate draws them", [draw(seed) for seed in range(scenes)]),
    ):
        judged, unjudged = [], []
        for number in range(-1, rounds):  # round -1 warms up and is not counted
            on_progress(f"{what}, round {number + 1} of {rounds}")
            times = _cpu_s(played, INVARIANTS), _cpu_s(played, ())
            if number >= 0:
                judged.append(times[0])
                unjudged.append(times[1])
        rows.append(
            SimulationRow(
                what=what,
                judged_per_s=scenes / median(judged),
                lowest=scenes / max(judged),
                highest=scenes / min(judged),
                unjudged_per_s=scenes / median(unjudged),
                judging=median(both / alone - 1 for both, alone in zip(judged, unjudged, strict=True)),
            )
        )
    return rows


def _cpu_s(scenes: Sequence[Scene], invariants: Sequence[type[Invariant[Any]]]) -> float:
    start_s = time.process_time()
    for scene in scenes:
        simulate(scene, invariants=invariants)
    return time.process_time() - start_s
