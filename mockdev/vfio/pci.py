# SPDX-License-Identifier: GPL-2.0-or-later
"""The PCI side of a ConnectX-7 virtual function: identity, config space, MSI-X table.

The values are those that lspci shows for such functions; both ends of a migration must show the same.

Source: PCI Express base specification 6.0, 7.5 and 7.7; Linux include/uapi/linux/pci_regs.h
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

CONFIG_SIZE = 4096

COMMAND = 0x04
STATUS = 0x06
CACHE_LINE_SIZE = 0x0C
BAR0 = 0x10
BAR1 = 0x14
INTERRUPT_LINE = 0x3C

CAP_EXPRESS = 0x60
CAP_MSIX = 0x9C
EXT_VENDOR = 0x100
EXT_ARI = 0x150

MSIX_ENTRY_SIZE = 16
MSIX_CONTROL_ENABLE = 0x8000
MSIX_CONTROL_MASK_ALL = 0x4000
_MSIX_VECTOR_MASKED = 1
_MSIX_VECTOR_CONTROL = 12
MSIX_TABLE_OFFSET = 0x2000  # both in BAR0
MSIX_PBA_OFFSET = 0x3000

_BAR_MEMORY_64_PREFETCH = 0x0C
_STATUS_CAP_LIST = 0x10
_EXPRESS_V2_ENDPOINT = 0x0002
_DEVCAP_FLR = 1 << 28
_DEVCAP_EXT_TAG = 1 << 5
_DEVCAP_PAYLOAD_512 = 2
_COMMAND_WRITABLE = 0x0547  # I/O, memory, master, parity, SERR, INTx off
_DEVCTL_WRITABLE = 0x7FFF  # bit 15 starts a function level reset and always reads 0


@dataclass(frozen=True)
class Identity:
    """What the function says of itself. bar0_bytes: a power of two that holds the MSI-X structures."""

    vendor: int = 0x15B3
    device: int = 0x101E
    subsystem_vendor: int = 0x15B3
    subsystem: int = 0x0083
    revision: int = 0
    class_code: int = 0x020000
    vectors: int = 12
    bar0_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        if not 1 <= self.vectors <= (MSIX_PBA_OFFSET - MSIX_TABLE_OFFSET) // MSIX_ENTRY_SIZE:
            raise ValueError(f"{self.vectors} MSI-X vectors do not fit before the pending bits")
        if self.bar0_bytes & (self.bar0_bytes - 1) or self.bar0_bytes <= MSIX_PBA_OFFSET:
            raise ValueError(f"BAR0 of {self.bar0_bytes} bytes: not a power of two above the pending bits")


CX7_VF = Identity()


def pending_size(vectors: int) -> int:
    """Bytes of the MSI-X pending bits in a saved state: one bit per vector."""
    return (vectors + 7) // 8


@lru_cache(maxsize=16)
def config_space(identity: Identity) -> bytes:
    """The 4096 bytes of config space after a reset."""
    space = bytearray(CONFIG_SIZE)

    def put(offset: int, size: int, value: int) -> None:
        space[offset : offset + size] = value.to_bytes(size, "little")

    put(0x00, 2, identity.vendor)
    put(0x02, 2, identity.device)
    put(STATUS, 2, _STATUS_CAP_LIST)
    put(0x08, 1, identity.revision)
    put(0x09, 3, identity.class_code)
    put(BAR0, 4, _BAR_MEMORY_64_PREFETCH)
    put(0x2C, 2, identity.subsystem_vendor)
    put(0x2E, 2, identity.subsystem)
    put(0x34, 1, CAP_EXPRESS)
    put(CAP_EXPRESS, 2, 0x10 | CAP_MSIX << 8)
    put(CAP_EXPRESS + 2, 2, _EXPRESS_V2_ENDPOINT)
    put(CAP_EXPRESS + 4, 4, _DEVCAP_FLR | _DEVCAP_EXT_TAG | _DEVCAP_PAYLOAD_512)
    put(CAP_MSIX, 2, 0x11)
    put(CAP_MSIX + 2, 2, identity.vectors - 1)
    put(CAP_MSIX + 4, 4, MSIX_TABLE_OFFSET)
    put(CAP_MSIX + 8, 4, MSIX_PBA_OFFSET)
    put(EXT_VENDOR, 4, 0x000B | 1 << 16 | EXT_ARI << 20)
    put(EXT_VENDOR + 4, 4, 0x0C << 20)
    put(EXT_ARI, 4, 0x000E | 1 << 16)
    return bytes(space)


@lru_cache(maxsize=16)
def writable_bits(identity: Identity) -> bytes:
    """A 4096-byte mask: bits that software may change, so two ends of a migration may differ in them."""
    mask = bytearray(CONFIG_SIZE)

    def put(offset: int, size: int, value: int) -> None:
        mask[offset : offset + size] = value.to_bytes(size, "little")

    put(COMMAND, 2, _COMMAND_WRITABLE)
    put(CACHE_LINE_SIZE, 1, 0xFF)
    put(BAR0, 4, ~(identity.bar0_bytes - 1) & 0xFFFFFFFF)
    put(BAR1, 4, 0xFFFFFFFF)
    put(INTERRUPT_LINE, 1, 0xFF)
    put(CAP_EXPRESS + 0x08, 2, _DEVCTL_WRITABLE)
    put(CAP_EXPRESS + 0x10, 2, 0xFFFF)
    put(CAP_EXPRESS + 0x28, 2, 0xFFFF)
    put(CAP_MSIX + 2, 2, MSIX_CONTROL_ENABLE | MSIX_CONTROL_MASK_ALL)
    return bytes(mask)


class PciFunction:
    """The PCI state of one device that migrates with it: config space, MSI-X table and pending bits."""

    def __init__(self, identity: Identity = CX7_VF) -> None:
        self.identity = identity
        self.writable = writable_bits(identity)
        self.config = bytearray()
        self.msix_table = bytearray()
        self.msix_pending = bytearray()
        self.reset()

    def reset(self) -> None:
        """Back to power-on values; every vector masked."""
        self.config = bytearray(config_space(self.identity))
        entry = bytearray(MSIX_ENTRY_SIZE)
        entry[_MSIX_VECTOR_CONTROL] = _MSIX_VECTOR_MASKED
        self.msix_table = entry * self.identity.vectors
        self.msix_pending = bytearray(pending_size(self.identity.vectors))

    def read_config(self, offset: int, size: int) -> bytes:
        """Config bytes from `offset`; short at the end of the space."""
        return bytes(self.config[max(0, offset) : max(0, offset) + size])

    def write_config(self, offset: int, data: bytes) -> None:
        """Write what is writable of `data` at `offset`; bytes past the end are dropped."""
        for at, value in enumerate(data[: max(0, CONFIG_SIZE - offset)], start=offset):
            mask = self.writable[at]
            self.config[at] = self.config[at] & ~mask | value & mask
