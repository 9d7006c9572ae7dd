# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast device state moves from source to target, beside a bare loop and real QEMU in the same rounds.

Every round measures each thing once, in turn, so that a machine whose speed drifts moves them alike; ratios
are taken within a round and their median is the figure.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mockdev.errors import VfmigError
from mockdev.lab.migration import run_migration
from mockdev.lab.qemu import QemuError, find_qemu
from mockdev.runtime.config import MigrationConfig
from verifier.bench.qemu_ram import migrate_ram, ram_image
from verifier.bench.sample import Sample, ThroughputRow, row

BARE, OURS, QEMU = "bare loop", "vfmig", "QEMU multifd RAM"
# With fewer sends than channels at once less is pushed out of the caches, but few channels carry it all.
TWO = "vfmig, 2 sends at once"
TAP_HEADERS, TAP_FULL = "vfmig, tap with headers and digests", "vfmig, tap with full payload"
_MIB = 1 << 20

OnProgress = Callable[[str], None]
Measure = Callable[[int], Sample]


def measure(
    *,
    vfs: int,
    state_bytes: int,
    channels: Sequence[int],
    rounds: int,
    capture: bool,
    on_progress: OnProgress,
) -> tuple[list[ThroughputRow], str]:
    """The rows, and a sentence about what could not be measured ("" when all was)."""
    with ExitStack() as stack:
        measures, missing = _measures(stack, vfs, state_bytes, capture)
        rows: list[ThroughputRow] = []
        for count in channels:
            samples: dict[str, list[Sample]] = {name: [] for name in measures}
            for number in range(-1, rounds):  # round -1 warms up and is not counted
                for name, take in measures.items():
                    on_progress(f"{count} channels, round {number + 1} of {rounds}: {name}")
                    sample = take(count)
                    if number >= 0:
                        samples[name].append(sample)
            rows += _rows(count, samples)
        return rows, missing


def _measures(stack: ExitStack, vfs: int, state_bytes: int, capture: bool) -> tuple[dict[str, Measure], str]:
    total = vfs * state_bytes
    folder = Path(stack.enter_context(scratch()))

    def ours(kept: str, at_once: int | None = None) -> Measure:
        def take(channels: int) -> Sample:
            return _ours(folder, vfs, state_bytes, channels, kept, at_once)

        return take

    measures: dict[str, Measure] = {
        BARE: lambda channels: _bare(channels, total),
        OURS: ours("none"),
        TWO: ours("none", 2),
    }
    if capture:
        measures[TAP_HEADERS] = ours("headers")
        measures[TAP_FULL] = ours("full")
    try:
        find_qemu()
    except QemuError as error:
        return measures, f"no comparison with QEMU: {error}"
    image = stack.enter_context(ram_image(total))
    measures[QEMU] = lambda channels: migrate_ram(image, channels)
    return measures, ""


@contextmanager
def scratch() -> Iterator[str]:
    """A folder in memory: a disk's speed is not what is measured."""
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None, prefix="vfmig-bench-") as folder:
        yield folder


def _rows(channels: int, samples: dict[str, list[Sample]]) -> list[ThroughputRow]:
    bare, qemu, ours = samples[BARE], samples.get(QEMU, []), samples[OURS]
    return [
        row(
            name,
            channels,
            taken,
            bare=bare,
            qemu=qemu,
            uncaptured=ours if name in (TAP_HEADERS, TAP_FULL) else [],
        )
        for name, taken in samples.items()
    ]


def _bare(channels: int, total: int) -> Sample:
    size = total // channels // _MIB * _MIB
    arguments = [sys.executable, "-m", "verifier.bench.bare", str(channels), str(size), "2"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=300)
    taken = json.loads(done.stdout.splitlines()[-1])  # the first one warms up
    return Sample(size * channels, taken["seconds"], taken["cpu_s"])


def _ours(
    folder: Path, vfs: int, state_bytes: int, channels: int, capture: str, at_once: int | None
) -> Sample:
    config = MigrationConfig(
        vfs=vfs,
        state_bytes=state_bytes,
        channels=channels,
        ram_bytes=0,  # only what is timed and counted is to cost CPU
        profile="unlimited",
        capture=capture,  # type: ignore[arg-type]
        in_flight_max=at_once,
    )
    outcome = run_migration(config, folder)
    (folder / "capture.pcapng").unlink(missing_ok=True)
    if outcome.outcome != "completed" or outcome.device_state_ms is None or not outcome.verified:
        why = outcome.source.error or outcome.target.error
        raise VfmigError(f"a migration of the benchmark came out {outcome.outcome}: {why}")
    cpu_s = outcome.source.cpu_s + outcome.target.cpu_s
    return Sample(outcome.device_bytes, outcome.device_state_ms / 1000, cpu_s)
