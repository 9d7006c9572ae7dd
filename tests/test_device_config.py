# SPDX-License-Identifier: GPL-2.0-or-later
"""The PCI state in the config buffer: against one that QEMU 10.0.2 wrote, and broken in every part."""

from __future__ import annotations

import pytest

from mockdev.device.config import (
    config_state_size,
    load_config_state,
    parse_config_state,
    save_config_state,
)
from mockdev.errors import RemoteProtocolError
from mockdev.vfio.pci import CONFIG_SIZE, Identity, PciFunction

# Between the two tags of a config buffer of a function with 8 vectors: the bytes that are not zero.
# From a migration of a mock VF (other card, other BAR size) between two QEMU 10.0.2 on machine "pc".
QEMU_SIZE = 4245
QEMU_BYTES = {
    0x000: "00000002b3151e1003011000000000020000000000",
    0x014: "0c00bffe",
    0x030: "b3155800000000006000",
    0x064: "109c0200e28f00100000000004f145",
    0x088: "10",
    0x0A0: "110007000020000000300000",
    **{4 + CONFIG_SIZE + 16 + 16 * vector + 12: "01" for vector in range(8)},
}


def qemu_state() -> bytes:
    data = bytearray(QEMU_SIZE)
    for at, text in QEMU_BYTES.items():
        part = bytes.fromhex(text)
        data[at : at + len(part)] = part
    return bytes(data)


def used() -> PciFunction:
    pci = PciFunction()
    pci.write_config(4, b"\x06\x04")
    pci.write_config(0x10, b"\x00\x00\xb0\xfe\x01")
    pci.write_config(0x9E, b"\x00\x80")
    pci.msix_table[16:32] = bytes(range(16))
    pci.msix_pending[1] = 0x08
    return pci


def test_qemus_own_bytes_have_this_length_and_these_parts() -> None:
    assert config_state_size(8) == QEMU_SIZE
    state = parse_config_state(qemu_state(), 8)
    assert state.config[:4].hex() == "b3151e10"
    assert state.config[0x9C] == 0x11
    assert state.intx == (0, 0, 0, 0)
    assert state.msix_table == (bytes(12) + b"\x01\0\0\0") * 8
    assert state.msix_pending == b"\0"


def test_a_fresh_function_writes_its_vectors_as_qemu_does() -> None:
    pci = PciFunction(Identity(vectors=8))
    ours, theirs = save_config_state(pci), qemu_state()
    assert ours[:8] == theirs[:8]
    assert ours[4 + CONFIG_SIZE :] == theirs[4 + CONFIG_SIZE :]


def test_the_other_end_has_the_same_state_after_it() -> None:
    source, target = used(), PciFunction()
    load_config_state(save_config_state(source), target)
    assert target.config == source.config
    assert target.msix_table == source.msix_table
    assert target.msix_pending == source.msix_pending


@pytest.mark.parametrize("size", [0, 1, 4099, 4308, 4309, 4311, 5000])
def test_a_wrong_length_is_refused(size: int) -> None:
    data = save_config_state(used())
    assert len(data) == 4310
    with pytest.raises(RemoteProtocolError, match=f"{size} bytes, 4310 for 12"):
        load_config_state((data + bytes(1000))[:size], PciFunction())


@pytest.mark.parametrize(
    ("at", "field"), [(0, "version_id"), (3, "version_id"), (4, "config"), (4 + 0x60, "config")]
)
def test_a_wrong_byte_is_named_and_nothing_is_loaded(at: int, field: str) -> None:
    data = bytearray(save_config_state(used()))
    data[at] ^= 0x40
    target = PciFunction()
    with pytest.raises(RemoteProtocolError) as caught:
        load_config_state(bytes(data), target)
    assert caught.value.field == field
    assert target.config == PciFunction().config


def test_a_pin_level_is_one_or_zero() -> None:
    data = bytearray(save_config_state(used()))
    data[4 + CONFIG_SIZE + 7] = 2
    with pytest.raises(RemoteProtocolError, match="pin 1 has level 2"):
        load_config_state(bytes(data), PciFunction())


def test_functions_with_other_vector_counts_do_not_load_each_others() -> None:
    with pytest.raises(RemoteProtocolError, match="for 8 MSI-X vectors"):
        load_config_state(save_config_state(used()), PciFunction(Identity(vectors=8)))
