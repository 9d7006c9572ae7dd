# SPDX-License-Identifier: GPL-2.0-or-later
"""What it costs to lend a device: one answered call, state through it, a profile's rate, QEMU's start."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import msgspec

from mockdev.attach.config import AttachConfig
from mockdev.device.timing import CONNECTX7, MIB
from mockdev.errors import VfmigError
from mockdev.lab.qemu import QemuError, find_qemu

_CHUNK_BYTES = 8 * MIB
_TIMEOUT_S = 300.0
_SMALL, _LARGE = 32 << 10, MIB  # what QEMU writes at once: from the main channel, from multifd


class AttachRow(msgspec.Struct, kw_only=True):
    """Medians over rounds, with the lowest and highest. wanted: what it is to be, as a sentence."""

    what: str
    unit: str
    median: float
    lowest: float
    highest: float
    wanted: str = ""


def measure(*, size: int, rounds: int, on_progress: Callable[[str], None]) -> tuple[list[AttachRow], str]:
    """The rows, and a sentence about what could not be measured. size: of a device's state, bytes."""
    nominal = _CHUNK_BYTES / (CONNECTX7.load_ns(_CHUNK_BYTES) / 1e9)
    taken: dict[str, list[float]] = {}

    def keep(what: str, value: float) -> None:
        taken.setdefault(what, []).append(value)

    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shm if shm.is_dir() else None, prefix="vfmig-bench-") as name:
        folder, state, small_state = Path(name), Path(name, "state"), Path(name, "throttled")
        slow_size = min(size, 200 * MIB)
        _lent(folder, ["keep", str(_LARGE), str(state)], size, "unlimited")
        _lent(folder, ["keep", str(_LARGE), str(small_state)], slow_size, "unlimited")
        for number in range(rounds):
            on_progress(f"round {number + 1} of {rounds}")
            told = _lent(folder, ["call", "save", str(_LARGE)], size, "unlimited")
            keep("call", told["call_ns"] / 1e3)
            keep("save", told["saved"] / told["save_ns"])
            for piece in (_SMALL, _LARGE):
                told = _lent(folder, ["load", str(piece), str(state)], size, "unlimited")
                keep(f"load {piece}", told["loaded"] / told["load_ns"])
                told = _lent(folder, ["load", str(piece), str(small_state)], slow_size, "connectx7")
                keep(f"rate {piece}", told["loaded"] / (told["load_ns"] / 1e9) / nominal * 100)
            missing = _start_up(keep)
    rows = [
        _row("one answered call", "us", taken["call"], "25 at most"),
        _row("state read, 1 MiB at once", "GB/s", taken["save"], "1.5 at least"),
        _row("state written, 1 MiB at once", "GB/s", taken[f"load {_LARGE}"], "1.5 at least"),
        _row("state written, 32 KiB at once", "GB/s", taken[f"load {_SMALL}"]),
        _row("connectx7's LOAD rate kept, 1 MiB", "%", taken[f"rate {_LARGE}"], "97 to 103"),
        _row("connectx7's LOAD rate kept, 32 KiB", "%", taken[f"rate {_SMALL}"], "97 to 103"),
    ]
    if "start" in taken:
        rows.append(_row("added to QEMU's start and end", "s", taken["start"], "0.3 at most"))
    return rows, missing


def _row(what: str, unit: str, values: Sequence[float], wanted: str = "") -> AttachRow:
    return AttachRow(
        what=what, unit=unit, median=median(values), lowest=min(values), highest=max(values), wanted=wanted
    )


def _lent(folder: Path, steps: Sequence[str], size: int, profile: str) -> dict[str, float]:
    """Have verifier.bench.vfio_user do these steps with a lent device; what it found."""
    program = (sys.executable, "-m", "verifier.bench.vfio_user", "{iommufd}", "{vf0}", "bind", *steps)
    log = folder / "log"
    log.unlink(missing_ok=True)
    config = AttachConfig(
        command=program,
        names=("vf0",),
        state_bytes=size,
        profile=profile,
        filled="load" not in steps,
        journal=str(folder / "journal"),
        log=str(log),
    )
    done = subprocess.run(
        [sys.executable, "-m", "mockdev.attach.supervisor"],
        input=msgspec.json.encode(config) + b"\n",
        capture_output=True,
        timeout=_TIMEOUT_S,
    )
    if done.returncode:
        raise VfmigError(f"a lent device could not be measured: {done.stdout.decode()} {log.read_text()}")
    told: dict[str, float] = json.loads(log.read_text().splitlines()[-1])
    return told


def _start_up(keep: Callable[[str, float], None]) -> str:
    """Seconds that two devices of 100 MiB add to a QEMU that is told to quit; why it was not measured."""
    try:
        binary = find_qemu()
    except QemuError as error:
        return str(error)
    qemu = [binary, "-machine", "pc", "-display", "none", "-nodefaults", "-S", "-monitor", "stdio"]
    # Without a card's timing: its reset at the start takes as long as a card's.
    vfmig = [sys.executable, "-c", "import sys; from verifier.cli import main; main()"]
    lend = [*vfmig, "qemu", "--vfs", "2", "--profile", "unlimited", "--"]
    keep("start", _seconds([*lend, *qemu]) - _seconds(qemu))
    return ""


def _seconds(command: Sequence[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, input=b"quit\n", capture_output=True, check=True, timeout=_TIMEOUT_S)
    return time.perf_counter() - start
