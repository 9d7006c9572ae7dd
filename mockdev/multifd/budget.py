# SPDX-License-Identifier: GPL-2.0-or-later
"""The cap on what one device may have queued at the target."""

from __future__ import annotations

from mockdev.errors import LocalProtocolError, RemoteProtocolError


class Budget:
    """Bytes of one device that are queued and not yet written to it, config buffer included.

    cap: bytes, or None for no cap. More than the cap is a failure, not a reason to wait: a sender that
    stays ahead of the device by more than it is a sender (or a cap) that is wrong.

    Source: QEMU hw/vfio/migration-multifd.c: vfio_load_state_buffer_insert (10.1 and later)
    """

    def __init__(self, device: str, cap: int | None) -> None:
        self.device = device
        self.cap = cap
        self.queued = 0
        self.queued_max = 0

    def add(self, idx: int, size: int) -> int:
        """Count a buffer in; the bytes queued then. RemoteProtocolError when they are more than the cap."""
        queued = self.queued + size
        if self.cap is not None and queued > self.cap:
            raise RemoteProtocolError(
                f"buffer {idx} of {self.device} ({size} bytes) would bring the bytes queued for it to "
                f"{queued}, over the cap of {self.cap}",
                field="queued bytes",
            )
        self.queued = queued
        self.queued_max = max(self.queued_max, queued)
        return queued

    def remove(self, size: int) -> int:
        """Count a buffer out, once it is written to the device; the bytes still queued."""
        if size > self.queued:
            raise LocalProtocolError(f"{self.device}: {size} bytes taken from a queue of {self.queued}")
        self.queued -= size
        return self.queued
