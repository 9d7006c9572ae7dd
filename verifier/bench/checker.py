# SPDX-License-Identifier: GPL-2.0-or-later
"""How fast `check` reads captures in page cache, beside tshark that merely lists their conversations."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import msgspec

from mockdev.errors import VfmigError
from mockdev.lab.migration import run_migration
from mockdev.runtime.config import MigrationConfig
from verifier.bench.resegment import resegment

# What loopback carries, without checksums, and what an Ethernet carries, with; each with how many files two
# jobs judge: so many that the start of a second interpreter, a tenth of a second, is small beside them.
LOOPBACK, ETHERNET = 65_495, 1_448
SEGMENTS = {LOOPBACK: 32, ETHERNET: 4}
VFMIG, TSHARK = "vfmig check", "tshark -z conv,tcp"
_SAMPLE_S = 0.02
_TSHARK_ROUNDS = 1  # it takes a minute a GB with small segments
_VFS = 4

# Runs in a process of its own, which prints how long the judging took, its start-up aside.
_CHECK = """
import sys, time
from pathlib import Path
from verifier.check import check_paths
start = time.perf_counter()
report = check_paths([Path(p) for p in sys.argv[2:]], jobs=int(sys.argv[1]))
print(time.perf_counter() - start, report.standing)
"""


class CheckRow(msgspec.Struct, kw_only=True):
    """Medians over rounds. bytes_per_s: of capture file; ratios are taken round by round.

    peak_anonymous_bytes: the most memory without a file behind it that the judging process held.
    """

    what: str
    segment_bytes: int
    jobs: int
    capture_bytes: int
    bytes_per_s: float
    ratio_to_tshark: float | None
    ratio_to_one_job: float | None
    peak_anonymous_bytes: int


def measure(*, size: int, rounds: int, on_progress: Callable[[str], None]) -> tuple[list[CheckRow], str]:
    """The rows, and a sentence about what could not be measured. size: device state in the capture, bytes."""
    rows: list[CheckRow] = []
    # On a disk and in its page cache, as captures are; a file system in memory maps its pages one by one.
    with tempfile.TemporaryDirectory(prefix="vfmig-bench-") as name:
        folder = Path(name)
        on_progress("making a capture")
        original = _capture(folder, size)
        for segment_bytes, files in SEGMENTS.items():
            on_progress(f"writing it in segments of {segment_bytes} bytes")
            path = folder / "segmented.pcapng"
            resegment(original, path, segment_bytes, offloaded=segment_bytes == LOOPBACK)
            rows += _rows(path, segment_bytes, files, rounds, on_progress)
    return rows, "" if shutil.which("tshark") else "no comparison with tshark: it is not installed"


def _capture(folder: Path, size: int) -> Path:
    config = MigrationConfig(
        vfs=_VFS, state_bytes=size // _VFS, profile="unlimited", capture="full", ram_bytes=1 << 20
    )
    outcome = run_migration(config, folder)
    path = folder / "capture.pcapng"
    if outcome.outcome != "completed":
        raise VfmigError(f"the migration to be captured came out {outcome.outcome}: {outcome.source.error}")
    return path


def _rows(
    path: Path, segment_bytes: int, files: int, rounds: int, on_progress: Callable[[str], None]
) -> list[CheckRow]:
    size = path.stat().st_size
    one: list[float] = []
    many: list[float] = []
    two: list[float] = []
    tshark: list[float] = []
    peak = 0
    for number in range(rounds):
        on_progress(f"segments of {segment_bytes} bytes, round {number + 1} of {rounds}")
        seconds, memory = _check([path], 1)
        one.append(seconds)
        peak = max(peak, memory)
        many.append(_check([path] * files, 1)[0])
        two.append(_check([path] * files, 2)[0])
        if shutil.which("tshark") and number < _TSHARK_ROUNDS:
            tshark.append(_tshark(path))
    ratio = median(t / o for t, o in zip(tshark, one, strict=False)) if tshark else None
    scaling = median(m / t for m, t in zip(many, two, strict=True))
    common = {"segment_bytes": segment_bytes}
    rows = [
        CheckRow(
            what=VFMIG,
            jobs=1,
            capture_bytes=size,
            bytes_per_s=size / median(one),
            ratio_to_tshark=ratio,
            ratio_to_one_job=None,
            peak_anonymous_bytes=peak,
            **common,
        ),
        CheckRow(
            what=VFMIG,
            jobs=2,
            capture_bytes=files * size,
            bytes_per_s=files * size / median(two),
            ratio_to_tshark=None,
            ratio_to_one_job=scaling,
            peak_anonymous_bytes=0,
            **common,
        ),
    ]
    if tshark:
        rows.append(
            CheckRow(
                what=TSHARK,
                jobs=1,
                capture_bytes=size,
                bytes_per_s=size / median(tshark),
                ratio_to_tshark=None,
                ratio_to_one_job=None,
                peak_anonymous_bytes=0,
                **common,
            )
        )
    return rows


def _check(paths: Sequence[Path], jobs: int) -> tuple[float, int]:
    """(seconds, peak anonymous bytes) of judging the paths."""
    command = [sys.executable, "-c", _CHECK, str(jobs), *map(str, paths)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _anonymous_bytes(process.pid))
        time.sleep(_SAMPLE_S)
    assert process.stdout is not None
    with process.stdout as answer:
        seconds, standing = answer.read().split()
    if standing != "holds":
        raise VfmigError(f"the benchmark's own capture came out {standing}")
    return float(seconds), peak


def _anonymous_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")]
    return int(found[0]) * 1024 if found else 0


def _tshark(path: Path) -> float:
    start = time.perf_counter()
    subprocess.run(["tshark", "-n", "-q", "-r", str(path), "-z", "conv,tcp"], check=True, capture_output=True)
    return time.perf_counter() - start
