# SPDX-License-Identifier: GPL-2.0-or-later
"""Every pair of endpoints, with real QEMU of two releases: migrations hold, and end with equal state.

These need both QEMUs and fail without: `.ci/packages` installs the older one, `make qemu` unpacks the newer.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from mockdev.lab.migration import Pair
from mockdev.lab.qemu import BINARY, QemuError
from mockdev.lab.qemu_end import Vm, check_vm, versioned
from mockdev.runtime.config import MigrationConfig
from verifier import evidence
from verifier.verdict import Report, Standing

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


# QEMU 10.0 adjusts a thread pool to its work after handing out that work: a source whose devices do not go
# over multifd may abort there when the threads, which then have nothing to do, are quick. 11.1 does not.
KNOWN_ABORT = "thread_pool_set_max_threads: Assertion `max_threads > 0' failed"
TRIES = 8


def migrate(folder: Path, config: MigrationConfig, pair: Pair) -> Report:
    """Run it; again, in a folder beside, as long as QEMU meets its known defect."""
    for own in evidence.new_folders(folder, TRIES):
        report = evidence.run(own, config, lambda *_: None, pair=pair)
        if not any(KNOWN_ABORT in unknown.why for unknown in report.unknown):
            return report
    raise AssertionError(f"{TRIES} aborts of QEMU in a row")


@pytest.mark.parametrize(("source", "target", "transfer", "precopy", "vfs"), CASES)
def test_a_migration_holds(
    tmp_path: Path, source: str, target: str, transfer: str, precopy: str, vfs: int
) -> None:
    binaries = [BINARIES[end] for end in (source, target) if end != "mock"]
    machine = versioned("pc", binaries) if binaries else "pc"
    vms = [
        Vm(binary=BINARIES[end], machine=machine, keep_state=len(binaries) == 2) if end != "mock" else None
        for end in (source, target)
    ]
    config = MigrationConfig(
        vfs=vfs,
        state_bytes=STATE_BYTES,
        transfer="multifd" if transfer == "multifd" else "main",
        precopy_bytes=2 * MIB if precopy == "precopy" else 0,
        profile="unlimited",
        seed=7,
    )
    report = migrate(tmp_path, config, Pair(source=vms[0], target=vms[1], relay=len(binaries) == 2))
    assert report.standing is Standing.HOLDS, (report.violations, report.unknown)
    assert report.outcome == "completed"
    assert [device.equal for device in report.devices] == [True] * vfs
    if len(binaries) == 2:
        assert report.run is not None
        assert report.run.guest_ram_equal is True


@pytest.mark.parametrize("release", BINARIES)
def test_under_kvm_where_there_is_kvm(tmp_path: Path, release: str) -> None:
    vm = Vm(binary=BINARIES[release], accel="kvm", keep_state=True)
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        with pytest.raises(QemuError, match="kvm"):
            check_vm(vm)
        return
    config = MigrationConfig(vfs=2, state_bytes=STATE_BYTES, profile="unlimited", precopy_bytes=MIB)
    report = migrate(tmp_path, config, Pair(source=vm, target=vm, relay=True))
    assert report.standing is Standing.HOLDS, (report.violations, report.unknown)


@pytest.mark.parametrize("release", BINARIES)
def test_a_vm_is_lost_after_a_load_error(tmp_path: Path, release: str) -> None:
    """EIO of a device that is being loaded over multifd: the target exits, the source says completed."""
    vm = Vm(binary=BINARIES[release])
    config = MigrationConfig(
        vfs=1, state_bytes=4 * MIB, profile="unlimited", faults=("target.vf0.load:eio@2MiB",)
    )
    report = migrate(tmp_path, config, Pair(source=vm, target=vm))
    assert (report.outcome, report.standing, report.exit_code) == ("lost", Standing.VIOLATED, 1)
    assert "OC-3" in {violation.id for violation in report.violations}


@pytest.mark.parametrize("release", BINARIES)
def test_a_vm_runs_twice_after_a_late_cancel(tmp_path: Path, release: str) -> None:
    """A cancel while device state is being saved: carried out only after the target has it all, and runs.

    On a busy machine the source may hear of the cancel when all is over; then it is tried again.
    """
    vm = Vm(binary=BINARIES[release])
    config = MigrationConfig(vfs=1, state_bytes=100 * MIB, faults=("source.process:cancel@+30ms",))
    for folder in evidence.new_folders(tmp_path, TRIES):
        report = migrate(folder, config, Pair(source=vm, target=vm))
        if report.outcome != "completed":
            break
    assert (report.outcome, report.standing, report.exit_code) == ("split-brain", Standing.VIOLATED, 1)
    assert "OC-1" in {violation.id for violation in report.violations}


@pytest.mark.parametrize("release", BINARIES)
@pytest.mark.parametrize(
    ("fault", "found", "unsure"),
    [
        ("target.vf0.arc.RUNNING:eio", {"ST-13"}, set()),  # reset, and all that was loaded is lost
        ("target.vf0.arc.RUNNING:error=eio", {"ST-13"}, set()),
        ("target.vf0.config:eio", {"EQ-8"}, set()),  # a write to the config space that fails is only logged
        # Of no concern to the migration: the source's device fails, and is reset, when all has been sent.
        ("source.vf0.arc.STOP:eio", set(), {"EQ-8"}),
    ],
)
def test_a_migration_that_completes_in_spite_of_a_device(
    tmp_path: Path, release: str, fault: str, found: set[str], unsure: set[str]
) -> None:
    vm = Vm(binary=BINARIES[release], keep_state=True)
    config = MigrationConfig(
        vfs=2, state_bytes=STATE_BYTES, profile="unlimited", precopy_bytes=MIB, faults=(fault,)
    )
    report = migrate(tmp_path, config, Pair(source=vm, target=vm, relay=True))
    assert report.outcome == "completed"
    assert {violation.id for violation in report.violations} == found, report.violations
    assert {unknown.id for unknown in report.unknown} == unsure, report.unknown


def test_on_the_main_channel_the_same_error_fails_cleanly(tmp_path: Path) -> None:
    vm = Vm(binary=BINARY)
    faults = ("target.vf0.load:eio@2MiB",)
    config = MigrationConfig(vfs=1, state_bytes=4 * MIB, profile="unlimited", transfer="main", faults=faults)
    report = migrate(tmp_path, config, Pair(source=vm, target=vm))
    assert (report.outcome, report.standing) == ("failed-clean", Standing.HOLDS)
