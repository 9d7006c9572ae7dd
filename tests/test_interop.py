# SPDX-License-Identifier: GPL-2.0-or-later
"""Every pair of endpoints, with real QEMU of two releases: migrations hold, and end with equal state.

These need both QEMUs and fail without: `.ci/packages` installs the older one, `make qemu` unpacks the newer.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from mockdev.lab.migration import Pair
from mockdev.lab.qemu import BINARY
from mockdev.lab.qemu_end import Vm, versioned
from mockdev.runtime.config import MigrationConfig
from verifier import evidence
from verifier.verdict import Standing

NEWER = str(Path(__file__).parent.parent / ".qemu" / BINARY)
BINARIES = {"10.0": BINARY, "11.1": NEWER}
MIB = 1 << 20
STATE_BYTES = 6 * MIB + 4097  # several chunks, none of them whole

ENDS = ["mock", *BINARIES]
CASES = [
    pytest.param(source, target, transfer, precopy, vfs, id=f"{source}-{target}-{transfer}-{precopy}-{vfs}")
    for source, target, transfer, precopy, vfs in itertools.product(
        ENDS, ENDS, ("multifd", "main"), ("precopy", "stop"), (1, 4)
    )
]


@pytest.mark.parametrize(("source", "target", "transfer", "precopy", "vfs"), CASES)
def test_a_migration_holds(
    tmp_path: Path, source: str, target: str, transfer: str, precopy: str, vfs: int
) -> None:
    binaries = [BINARIES[end] for end in (source, target) if end != "mock"]
    machine = versioned("pc", binaries) if binaries else "pc"
    vms = {
        role: Vm(binary=BINARIES[end], machine=machine, dump_ram=len(binaries) == 2)
        for role, end in (("source", source), ("target", target))
        if end != "mock"
    }
    config = MigrationConfig(
        vfs=vfs,
        state_bytes=STATE_BYTES,
        transfer="multifd" if transfer == "multifd" else "main",
        precopy_bytes=2 * MIB if precopy == "precopy" else 0,
        profile="unlimited",
        seed=7,
    )
    report = evidence.run(tmp_path, config, lambda *_: None, pair=Pair(**vms))
    assert report.standing is Standing.HOLDS, (report.violations, report.unknown)
    assert report.outcome == "completed"
    assert [device.equal for device in report.devices] == [True] * vfs
    if len(binaries) == 2:
        assert report.run is not None
        assert report.run.guest_ram_equal is True
