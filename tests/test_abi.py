# SPDX-License-Identifier: GPL-2.0-or-later
"""Our structs and numbers are those of this machine's kernel headers, and a wrong one would be told."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mockdev.vfio import uapi
from mockdev.vfio.mlx5_stream import RECORD_HEADER
from mockdev.wire.layout import BIG, LITTLE, S32, U16, U32, U64, Layout
from verifier.abi import LAYOUTS, NUMBERS, Number, Outcome, Row, compare

# In every header since Linux 6.1, the oldest that a Debian we support has.
CORE = {
    "vfio_device_feature",
    "vfio_device_feature_migration",
    "vfio_device_feature_mig_state",
    "vfio_device_feature_dma_logging_control",
    "vfio_device_feature_dma_logging_range",
    "vfio_device_feature_dma_logging_report",
    "vfio_region_info",
    "vfio_irq_info",
    "vfio_irq_set",
    "kvm_device_attr",
}
CORE_NUMBERS = {
    "VFIO_DEVICE_GET_INFO",
    "VFIO_DEVICE_GET_REGION_INFO",
    "VFIO_DEVICE_SET_IRQS",
    "VFIO_DEVICE_RESET",
    "VFIO_DEVICE_FEATURE",
    "VFIO_DEVICE_FEATURE_SET",
    "VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE",
    "VFIO_DEVICE_STATE_STOP_COPY",
    "VFIO_DEVICE_STATE_RESUMING",
    "VFIO_MIGRATION_P2P",
    "VFIO_PCI_CONFIG_REGION_INDEX",
    "VFIO_PCI_MSIX_IRQ_INDEX",
    "KVM_SET_DEVICE_ATTR",
    "SECCOMP_RET_USER_NOTIF",
    "__NR_ioctl",
    "__NR_pidfd_getfd",
}
HEADER = "Linux include/uapi/linux/vfio.h: made up"


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    """What this machine's headers say of all of ours."""
    return {row.c_name: row for row in compare()}


def test_nothing_of_ours_differs_and_all_is_told(rows: dict[str, Row]) -> None:
    assert [row for row in rows.values() if row.outcome is Outcome.DIFFERS] == []
    assert rows.keys() == {x.c_name for x in LAYOUTS} | {n.c_name for n in NUMBERS}
    unchecked = [row for row in rows.values() if row.outcome is Outcome.NOT_CHECKED]
    print("not checked here:", *(f"{row.c_name}: {row.why}" for row in unchecked), sep="\n  ")
    # What this machine's headers are too old for is fine; a missing compiler is not.
    assert [row for row in unchecked if "this machine" not in row.why] == []


@pytest.mark.parametrize("c_name", sorted(CORE | CORE_NUMBERS))
def test_what_every_header_has_is_really_compared(c_name: str, rows: dict[str, Row]) -> None:
    assert rows[c_name] == Row(c_name, Outcome.MATCHES)


def test_device_info_is_compared_up_to_what_newer_headers_added(rows: dict[str, Row]) -> None:
    row = rows["vfio_device_info"]
    assert row.outcome is Outcome.MATCHES or row[1:] == (Outcome.BEGINS, "theirs ends before pad")


# --- wrong descriptions ----------------------------------------------------------------------------


def one(record: type[Any], c_name: str = "vfio_region_info", **how: Any) -> Row:
    """What comes of describing a struct so."""
    layout: Layout[Any] = Layout(record, c_name=c_name, order=how.get("order", LITTLE), source=HEADER)
    (row,) = compare([layout], [])
    return row


class Swapped(NamedTuple):
    argsz: U32
    flags: U32
    cap_offset: U32
    index: U32  # type: ignore[assignment]
    size: U64
    offset: U64


class Narrow(NamedTuple):
    argsz: U32
    flags: U32
    index: U32  # type: ignore[assignment]
    cap_offset: U32
    size: U32
    high: U32
    offset: U64


class Renamed(NamedTuple):
    argsz: U32
    flags: U32
    index: U32  # type: ignore[assignment]
    first_cap: U32
    size: U64
    offset: U64


class Short(NamedTuple):
    argsz: U32
    flags: U32
    index: U32  # type: ignore[assignment]
    cap_offset: U32
    size: U64


class Long(NamedTuple):
    argsz: U32
    flags: U32
    index: U32  # type: ignore[assignment]
    cap_offset: U32
    size: U64
    offset: U64
    more: U32


class Unsigned(NamedTuple):
    device_state: U32
    data_fd: U32


class Reserved(NamedTuple):
    argsz: U32
    flags: U32
    reserved: U64
    size: U64
    offset: U64


class Across(NamedTuple):
    argsz: U32
    flags: U32
    index: U32  # type: ignore[assignment]
    reserved: U64
    reserved2: U32
    offset: U64


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (Swapped, "index: ours at 12 with 4 bytes, theirs at 8 with 4"),
        (Narrow, "size: ours at 16 with 4 bytes, theirs at 16 with 8"),
        (Renamed, "theirs has no first_cap, but cap_offset at 12"),
        (Across, "reserved2"),
    ],
)
def test_a_wrong_struct_is_told_with_its_field(record: type[Any], why: str) -> None:
    row = one(record)
    assert row.outcome is Outcome.DIFFERS
    assert why in row.why


def test_a_sign_of_ours_alone_and_the_other_byte_order_are_told() -> None:
    assert one(Unsigned, "vfio_device_feature_mig_state").why == "data_fd: theirs alone has a sign"
    assert one(uapi.RegionInfo, order=BIG).outcome is Outcome.DIFFERS


def test_one_that_is_the_beginning_of_the_other_does_not_pass_for_the_whole() -> None:
    assert one(Short)[1:] == (Outcome.BEGINS, "theirs goes on with offset")
    assert one(Long)[1:] == (Outcome.BEGINS, "theirs ends before more")


def test_what_we_call_reserved_may_be_used_there() -> None:
    assert one(Reserved).outcome is Outcome.MATCHES


def test_wrong_numbers_are_told() -> None:
    numbers = [
        Number("VFIO_DEVICE_FEATURE", 0x3B76, "linux/vfio.h"),
        Number("VFIO_DEVICE_STATE_STOP", 2, "linux/vfio.h"),
        Number("VFIO_DEVICE_FLAGS_RESET", 0, "linux/vfio.h"),
        Number("VFIO_PCI_BAR0_REGION_INDEX", 0, "linux/vfio.h"),
    ]
    assert [row.outcome for row in compare([], numbers)] == [Outcome.DIFFERS] * 3 + [Outcome.MATCHES]
    assert compare([], numbers)[0].why == "ours is 0x3b76, theirs 0x3b75"


# --- what cannot be compared -----------------------------------------------------------------------


class Other(NamedTuple):
    fd: S32
    kind: U16


def test_what_cannot_be_compared_says_why() -> None:
    assert one(Other, "vfio_no_such").why == "linux/vfio.h of this machine does not have it"
    nowhere: Layout[Any] = Layout(
        Other, c_name="nowhere", order=LITTLE, source="Linux include/uapi/linux/nowhere.h: nowhere"
    )
    rows = compare([RECORD_HEADER, nowhere], [Number("NOWHERE", 1, "linux/nowhere.h")])
    assert {row.outcome for row in rows} == {Outcome.NOT_CHECKED}
    assert "it is in no header of user space" in rows[0].why
    assert [row.why for row in rows[1:]] == ["this machine has no linux/nowhere.h"] * 2


@pytest.mark.parametrize(
    ("compiler", "why"), [("no-such-cc", "there is no C compiler"), ("false", "does not compile it")]
)
def test_without_a_compiler_every_row_says_so(compiler: str, why: str) -> None:
    rows = compare(compiler=compiler)
    assert len(rows) == len(LAYOUTS) + len(NUMBERS)
    assert {row.outcome for row in rows} == {Outcome.NOT_CHECKED}
    assert all(why in row.why for row in rows)


def test_other_headers_come_before_the_systems(tmp_path: Path) -> None:
    (tmp_path / "linux").mkdir()
    (tmp_path / "linux" / "vfio.h").write_text(
        "struct vfio_region_info { unsigned argsz, flags; struct { unsigned index, cap_offset; };"
        " unsigned long long size; union { unsigned long long offset, place; }; unsigned char data[]; };\n"
        "#define VFIO_DEVICE_FEATURE 7\n"
    )
    number = Number("VFIO_DEVICE_FEATURE", 7, "linux/vfio.h")
    rows = compare([uapi.REGION_INFO, uapi.IRQ_INFO], [number], include=[tmp_path])
    assert [row.outcome for row in rows] == [Outcome.MATCHES, Outcome.NOT_CHECKED, Outcome.MATCHES]


def test_a_header_that_does_not_compile_says_so(tmp_path: Path) -> None:
    (tmp_path / "linux").mkdir()
    (tmp_path / "linux" / "vfio.h").write_text("#error not today\n")
    (row,) = compare([uapi.REGION_INFO], [], include=[tmp_path])
    assert row.outcome is Outcome.NOT_CHECKED
    assert "not today" in row.why
