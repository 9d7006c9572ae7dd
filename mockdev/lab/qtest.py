# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest would see of its PCI devices, read without a guest: through QEMU's qtest socket.

Source: QEMU system/qtest.c: qtest_process_command; docs/specs (PCI configuration mechanism 1)
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import NamedTuple

from mockdev.errors import VfmigError
from mockdev.vfio.pci import BAR0, CAP_MSIX, COMMAND, MSIX_ENTRY_SIZE, MSIX_TABLE_OFFSET

_CONFIG_ADDRESS, _CONFIG_DATA = 0xCF8, 0xCFC
_ENABLE = 1 << 31
_CONFIG_BYTES = 256
_BAR_MASK = ~0xF
_COMMAND_MEMORY = 2
_VECTORS_MASK = 0x7FF
_TIMEOUT_S = 10.0
_LINE_BYTES_MAX = 4096


class QtestError(VfmigError):
    """QEMU's qtest socket does not answer as it should."""

    environment = True


class PciState(NamedTuple):
    """One function: its first 256 bytes of config space, and its MSI-X table if a guest has mapped it."""

    config: bytes
    msix: bytes | None


class Qtest:
    """A connection to a qtest socket, for a `with` block. QtestError: it cannot be had."""

    def __init__(self, path: str | Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_TIMEOUT_S)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise QtestError(f"QEMU's qtest socket {path} cannot be reached: {error.strerror}") from None
        self._answers = self._socket.makefile("rb")

    def pci_state(self, slot: int) -> PciState:
        """The function 0 of a slot of bus 0, as a guest would read it."""
        config = b"".join(
            self._config_read(slot, at).to_bytes(4, "little") for at in range(0, _CONFIG_BYTES, 4)
        )

        def word(at: int, size: int) -> int:
            return int.from_bytes(config[at : at + size], "little")

        base = word(BAR0, 8) & _BAR_MASK
        if not word(COMMAND, 2) & _COMMAND_MEMORY or not base:
            return PciState(config, None)
        entries = (word(CAP_MSIX + 2, 2) & _VECTORS_MASK) + 1
        return PciState(config, self._memory_read(base + MSIX_TABLE_OFFSET, entries * MSIX_ENTRY_SIZE))

    def _config_read(self, slot: int, at: int) -> int:
        self._ask(f"outl {_CONFIG_ADDRESS:#x} {_ENABLE | slot << 11 | at:#x}")
        return int(self._ask(f"inl {_CONFIG_DATA:#x}"), 16)

    def _memory_read(self, address: int, size: int) -> bytes:
        return bytes.fromhex(self._ask(f"read {address:#x} {size:#x}").removeprefix("0x"))

    def _ask(self, line: str) -> str:
        try:
            self._socket.sendall(line.encode() + b"\n")
            answer = self._answers.readline(_LINE_BYTES_MAX).decode("ascii", "replace").split()
        except OSError as error:
            raise QtestError(f"QEMU's qtest socket: {error}") from None
        if not answer or answer[0] != "OK":
            raise QtestError(f"QEMU's qtest socket answers {' '.join(answer) or 'nothing'} to {line!r}")
        return answer[1] if len(answer) > 1 else ""

    def __enter__(self) -> Qtest:
        return self

    def __exit__(self, *_: object) -> None:
        self._answers.close()
        self._socket.close()
