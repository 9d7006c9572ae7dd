# SPDX-License-Identifier: GPL-2.0-or-later
"""A device's PCI state as QEMU writes it into the config buffer (vmstate "VFIOPCIDevice", version 1).

The two 64-bit tags that stand around it in the buffer are the carrier's, not ours.

Source: QEMU hw/vfio/pci.c: vmstate_vfio_pci_config, vfio_pci_load_config; hw/pci/pci.c:
vmstate_pci_device, get_pci_config_device; hw/pci/msix.c: msix_save
"""

from __future__ import annotations

from typing import NamedTuple

from mockdev.errors import RemoteProtocolError
from mockdev.vfio.pci import CONFIG_SIZE, MSIX_ENTRY_SIZE, PciFunction, pending_size

PCI_DEVICE_VERSION = 2
INTX_PINS = 4
_WORD = 4


class ConfigState(NamedTuple):
    """The parts: config space, level of each INTx pin, MSI-X table and pending bits."""

    config: bytes
    intx: tuple[int, ...]
    msix_table: bytes
    msix_pending: bytes


def config_state_size(vectors: int) -> int:
    """Bytes of the state of a PCI Express function with that many MSI-X vectors."""
    return _WORD + CONFIG_SIZE + INTX_PINS * _WORD + MSIX_ENTRY_SIZE * vectors + pending_size(vectors)


def save_config_state(pci: PciFunction) -> bytes:
    """The function's state as bytes."""
    return b"".join(
        (
            PCI_DEVICE_VERSION.to_bytes(_WORD, "big"),
            pci.config,
            bytes(INTX_PINS * _WORD),  # a virtual function has no INTx, so no pin is ever raised
            pci.msix_table,
            pci.msix_pending,
        )
    )


def parse_config_state(data: bytes | memoryview, vectors: int) -> ConfigState:
    """Take the state apart. RemoteProtocolError, naming the place: wrong length, version or pin level."""
    size = config_state_size(vectors)
    if len(data) != size:
        raise RemoteProtocolError(
            f"the PCI state has {len(data)} bytes, {size} for {vectors} MSI-X vectors", field="PCIDevice"
        )
    version = int.from_bytes(data[:_WORD], "big", signed=True)
    if version != PCI_DEVICE_VERSION:
        raise RemoteProtocolError(
            f"version {version}, {PCI_DEVICE_VERSION} is known", offset=0, field="version_id"
        )
    config_end = _WORD + CONFIG_SIZE
    intx_end = config_end + INTX_PINS * _WORD
    table_end = intx_end + MSIX_ENTRY_SIZE * vectors
    intx = tuple(int.from_bytes(data[at : at + _WORD], "big") for at in range(config_end, intx_end, _WORD))
    for pin, level in enumerate(intx):
        if level > 1:
            raise RemoteProtocolError(
                f"pin {pin} has level {level}", offset=config_end + pin * _WORD, field="irq_state"
            )
    return ConfigState(
        bytes(data[_WORD:config_end]), intx, bytes(data[intx_end:table_end]), bytes(data[table_end:])
    )


def load_config_state(data: bytes | memoryview, pci: PciFunction) -> None:
    """Give the function the state that another one had.

    RemoteProtocolError: as parse_config_state, or a config byte that software cannot change differs (the
    two functions are not alike); then nothing is changed.
    """
    state = parse_config_state(data, pci.identity.vectors)
    new, old, mask = (int.from_bytes(part, "little") for part in (state.config, pci.config, pci.writable))
    wrong = (new ^ old) & ~mask
    if wrong:
        at = ((wrong & -wrong).bit_length() - 1) // 8  # the lowest byte that differs
        raise RemoteProtocolError(
            f"config byte {at:#x} is {state.config[at]:#04x}, this device has {pci.config[at]:#04x}",
            offset=_WORD + at,
            field="config",
        )
    pci.config[:] = state.config
    pci.msix_table[:] = state.msix_table
    pci.msix_pending[:] = state.msix_pending
