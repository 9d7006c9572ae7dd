# SPDX-License-Identifier: GPL-2.0-or-later
"""The function's config space: what a host reads, and what it can change."""

from __future__ import annotations

import pytest

from mockdev.vfio.pci import CONFIG_SIZE, Identity, PciFunction, config_space


def test_identity_is_where_a_host_looks_for_it() -> None:
    space = config_space(Identity())
    assert len(space) == 4096
    assert space[:0x10].hex(" ", 4) == "b3151e10 00001000 00000002 00000000"
    assert space[0x10:0x18].hex() == "0c00000000000000"
    assert space[0x2C:0x30].hex() == "b3158300"
    assert space[0x3D] == 0  # no interrupt pin


def test_capabilities_are_chained_to_their_end() -> None:
    space = config_space(Identity(vectors=8))
    ids, at = [], space[0x34]
    while at:
        ids.append((at, space[at]))
        at = space[at + 1]
    assert ids == [(0x60, 0x10), (0x9C, 0x11)]
    assert int.from_bytes(space[0x9E:0xA0], "little") == 8 - 1
    assert int.from_bytes(space[0x64:0x68], "little") & 1 << 28  # function level reset
    extended, at = [], 0x100
    while at:
        word = int.from_bytes(space[at : at + 4], "little")
        extended.append((at, word & 0xFFFF))
        at = word >> 20
    assert extended == [(0x100, 0x000B), (0x150, 0x000E)]
    assert int.from_bytes(space[0x104:0x108], "little") >> 20 == 0x0C  # length of the vendor's one
    used = {at for at, value in enumerate(space) if value}
    assert max(used) < 0x154


def test_writes_change_what_is_writable_only() -> None:
    pci = PciFunction(Identity(bar0_bytes=1 << 20))
    before = bytes(pci.config)
    pci.write_config(0, b"\xff" * CONFIG_SIZE)
    assert pci.read_config(0, 4) == before[:4]
    assert pci.read_config(0x10, 8) == bytes.fromhex("0c00f0ffffffffff")  # the size of the BAR, as probed
    assert pci.read_config(0x9E, 2) == bytes.fromhex("0bc0")
    changed = [at for at, (a, b) in enumerate(zip(before, pci.config, strict=True)) if a != b]
    express = [0x68, 0x69, 0x70, 0x71, 0x88, 0x89]  # device, link and second device control
    assert changed == [4, 5, 0x0C, *range(0x12, 0x18), 0x3C, *express, 0x9F]
    pci.write_config(0, bytes(CONFIG_SIZE))
    assert pci.config == before
    pci.write_config(CONFIG_SIZE - 1, b"\xff\xff")
    assert len(pci.config) == CONFIG_SIZE
    pci.write_config(4, b"\x06")
    pci.reset()
    assert pci.config == before


@pytest.mark.parametrize("wrong", [{"vectors": 0}, {"vectors": 257}, {"bar0_bytes": 3}, {"bar0_bytes": 4096}])
def test_an_identity_that_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        Identity(**wrong)
