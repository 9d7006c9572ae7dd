# SPDX-License-Identifier: GPL-2.0-or-later
"""What a migration is asked to be, and what one endpoint of it is told: values that travel as JSON."""

from __future__ import annotations

import uuid
from typing import Literal

import msgspec

from mockdev.device.image import PAGE_SIZE
from mockdev.device.timing import MIB, PROFILES
from mockdev.errors import VfmigError
from mockdev.wire.dialect import dialect
from mockdev.wire.structs import CHANNELS_MAX, VFIO_BUFFER_BYTES_MAX

FIRST_SLOT = 2  # PCI slots 0 and 1 of QEMU's pc machine are taken
VFS_MAX = 30  # slots 2 to 31 of one bus


class MigrationConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One migration of mock devices between two endpoints of ours.

    vfs: number of devices; state_bytes: of each. channels: multifd connections; 0 only with transfer
    "main": then RAM too goes over the main channel. transfer: how device state goes. profile: what device
    commands cost (device/timing.py). precopy_bytes: of each state, may be sent before the stop; 0: off.
    queue_cap_bytes: per device at the target, None: none. load_threads: None: the receiving threads load
    when the profile costs nothing, else one thread per device. zero_pages: who finds zero pages, as QEMU's
    zero-page-detection. capture: what the endpoints' tap keeps; capture_at: which endpoint. uuid: of
    the VM, as text. dialect: the release whose machine type is spoken.

    buffer_bytes: of one device-state buffer. chunk_bytes: of one SAVE. in_flight_max: device buffers being
    sent at once, None: one per channel, so that all are used alike. pool_bytes_max: of received and not
    loaded buffers. socket_buffer_bytes: 0: the system's own, None: what suits the number of channels.
    idle_timeout_s: silence on all connections that ends an endpoint.
    """

    vfs: int = 4
    state_bytes: int = 100 * MIB
    channels: int = 6
    transfer: Literal["multifd", "main"] = "multifd"
    profile: str = "connectx7"
    precopy_bytes: int = 0
    queue_cap_bytes: int | None = None
    load_threads: int | None = None
    ram_bytes: int = 16 * MIB
    zero_pages: Literal["multifd", "legacy", "none"] = "multifd"
    capture: Literal["full", "headers", "none"] = "full"
    capture_at: Literal["source", "target"] = "source"
    transport: Literal["tcp", "unix", "memory"] = "tcp"
    seed: int = 0
    dialect: str = "10.0"
    uuid: str = "00000000-0000-0000-0000-000000000000"
    buffer_bytes: int = VFIO_BUFFER_BYTES_MAX
    chunk_bytes: int = 8 * MIB
    in_flight_max: int | None = None
    pool_bytes_max: int = 256 * MIB
    socket_buffer_bytes: int | None = None
    idle_timeout_s: float = 30.0

    @property
    def devices(self) -> tuple[str, ...]:
        """The idstr of each device's section."""
        return tuple(f"0000:00:{FIRST_SLOT + n:02x}.0/vfio" for n in range(self.vfs))

    @property
    def machine(self) -> str:
        """The machine type that the stream names."""
        return f"pc-i440fx-{self.dialect}"

    @property
    def uuid_bytes(self) -> bytes:
        """The VM's uuid in textual order."""
        return uuid.UUID(self.uuid).bytes

    def check(self) -> None:
        """VfmigError, naming the value, when the configuration cannot be run."""
        for wrong, message in self._rules():
            if wrong:
                raise VfmigError(message)
        try:
            known = dialect(self.dialect)
        except KeyError as error:
            raise VfmigError(str(error.args[0])) from None
        if self.transfer == "multifd" and not known.device_state:
            raise VfmigError(f"dialect {self.dialect} has no device state over multifd")
        if not known.switchover_start:
            raise VfmigError(f"dialect {self.dialect} has no SWITCHOVER_START, which the target waits for")
        try:
            uuid.UUID(self.uuid)
        except ValueError:
            raise VfmigError(f"not a uuid: {self.uuid!r}") from None

    def _rules(self) -> tuple[tuple[bool, str], ...]:
        lowest = 1 if self.transfer == "multifd" else 0
        return (
            (not 1 <= self.vfs <= VFS_MAX, f"{self.vfs} devices, not 1 to {VFS_MAX}"),
            (self.state_bytes < 1, f"a device state of {self.state_bytes} bytes"),
            (
                not lowest <= self.channels <= CHANNELS_MAX,
                f"{self.channels} channels, not {lowest} to {CHANNELS_MAX} with transfer {self.transfer}",
            ),
            (self.profile not in PROFILES, f"no profile {self.profile!r}; known: {', '.join(PROFILES)}"),
            (
                not 0 <= self.precopy_bytes < max(1, self.state_bytes),
                f"{self.precopy_bytes} bytes before the stop, of a state of {self.state_bytes}",
            ),
            (
                self.queue_cap_bytes is not None and self.queue_cap_bytes < 1,
                f"a queue cap of {self.queue_cap_bytes} bytes",
            ),
            (
                self.load_threads is not None and self.load_threads < 1,
                f"{self.load_threads} load threads",
            ),
            (
                self.ram_bytes < 0 or self.ram_bytes % PAGE_SIZE != 0,
                f"RAM of {self.ram_bytes} bytes is not a number of {PAGE_SIZE}-byte pages",
            ),
            (
                not 1 <= self.buffer_bytes <= VFIO_BUFFER_BYTES_MAX,
                f"buffers of {self.buffer_bytes} bytes, not 1 to {VFIO_BUFFER_BYTES_MAX}",
            ),
            (self.chunk_bytes < 1, f"chunks of {self.chunk_bytes} bytes"),
            (
                self.in_flight_max is not None and self.in_flight_max < 1,
                f"{self.in_flight_max} buffers in flight",
            ),
            (
                self.pool_bytes_max < 4 * VFIO_BUFFER_BYTES_MAX,
                f"a pool of {self.pool_bytes_max} bytes, less than 4 buffers of {VFIO_BUFFER_BYTES_MAX}",
            ),
            (self.idle_timeout_s <= 0, f"an idle timeout of {self.idle_timeout_s} s"),
        )


class EndpointConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint of a migration.

    address: "host:port" or a path; where the target listens ("" or port 0: any), where the source connects.
    folder: where the journal and the capture go. clock_offset_ns: see mockdev/clock.py.
    """

    role: Literal["source", "target"]
    migration: MigrationConfig
    folder: str
    address: str = ""
    clock_offset_ns: int | None = None
