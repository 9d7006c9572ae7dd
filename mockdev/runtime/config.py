# SPDX-License-Identifier: GPL-2.0-or-later
"""What a migration is asked to be, and what one endpoint of it is told: values that travel as JSON."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Literal

import msgspec

from mockdev.device.image import PAGE_SIZE
from mockdev.device.timing import MIB, PROFILES
from mockdev.errors import VfmigError
from mockdev.faultspec import parse_all
from mockdev.wire.dialect import dialect
from mockdev.wire.mainstream import is_vfio
from mockdev.wire.structs import CHANNELS_MAX, VFIO_BUFFER_BYTES_MAX

FIRST_SLOT = 2  # PCI slots 0 and 1 of QEMU's pc machine are taken
VFS_MAX = 30  # slots 2 to 31 of one bus


class MigrationConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One migration of mock devices, of which one endpoint of ours, or both, take part.

    peer: what an endpoint's other end is: an endpoint of ours with our own small machine, or a QEMU with any
    machine. vfs: number of devices (0 only with a QEMU); state_bytes: of each. device_names: the idstr of
    each one's section, () for slot 2 and those after it. channels: multifd connections; 0 only with transfer
    "main": then RAM too goes over the main channel. transfer: how device state goes. profile: what device
    commands cost (device/timing.py). precopy_bytes: of each state, may be sent before the stop; 0: off.
    queue_cap_bytes: per device at the target, None: none. load_threads: None: the receiving threads load
    when the profile costs nothing, else one thread per device. load_late: nothing is loaded before all
    buffers of all devices have come. zero_pages: who finds zero pages, as QEMU's zero-page-detection.
    capture: what the endpoints' tap keeps; capture_at: which endpoint. uuid: of the VM, as text; a QEMU's
    machine has its own. dialect: the release whose machine type is spoken.

    switchover_ack: the target says when it has the first of each device's PRE_COPY state, and the source
    stops the VM no sooner. ram_bytes_max: RAM that a QEMU's machine may have, at most.

    buffer_bytes: of one device-state buffer. chunk_bytes: of one SAVE. in_flight_max: device buffers being
    sent at once, None: one per channel, so that all are used alike. pool_bytes_max: of received and not
    loaded buffers. socket_buffer_bytes: 0: the system's own, None: what suits the number of channels.
    idle_timeout_s: silence on all connections that ends an endpoint. faults: what goes wrong, as in
    faultspec.py; an endpoint carries out those of its devices.
    """

    peer: Literal["mock", "qemu"] = "mock"
    vfs: int = 4
    device_names: tuple[str, ...] = ()
    state_bytes: int = 100 * MIB
    channels: int = 6
    transfer: Literal["multifd", "main"] = "multifd"
    profile: str = "connectx7"
    precopy_bytes: int = 0
    switchover_ack: bool = False
    queue_cap_bytes: int | None = None
    load_threads: int | None = None
    load_late: bool = False
    ram_bytes: int = 16 * MIB
    ram_bytes_max: int = 4096 * MIB
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
    faults: tuple[str, ...] = ()

    @property
    def devices(self) -> tuple[str, ...]:
        """The idstr of each device's section."""
        return self.device_names or tuple(f"0000:00:{FIRST_SLOT + n:02x}.0/vfio" for n in range(self.vfs))

    @property
    def machine(self) -> str:
        """The machine type that our own source names."""
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
        parse_all(self.faults, self.vfs, self.channels)
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
        fewest = 0 if self.peer == "qemu" else 1
        names = self.device_names
        return (
            (not fewest <= self.vfs <= VFS_MAX, f"{self.vfs} devices, not {fewest} to {VFS_MAX}"),
            (
                bool(names) and len(set(names)) != self.vfs,
                f"{len(set(names))} different device names for {self.vfs} devices",
            ),
            (
                not all(is_vfio(name) and name.isascii() and len(name) < 256 for name in names),
                f"not all are names of VFIO sections, like 0000:00:02.0/vfio: {', '.join(names)}",
            ),
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
            (self.ram_bytes_max < 0, f"RAM of at most {self.ram_bytes_max} bytes"),
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
    folder: where the journal and the capture go. clock_offset_ns: see mockdev/clock.py. template: a file with
    the machine of a QEMU (runtime/template.py): written by a target, if named, and played by a source to
    a QEMU.
    """

    role: Literal["source", "target"]
    migration: MigrationConfig
    folder: str
    address: str = ""
    template: str = ""
    clock_offset_ns: int | None = None

    def check(self) -> None:
        """VfmigError, naming the value, when this endpoint cannot be."""
        self.migration.check()
        qemu = self.migration.peer == "qemu"
        if self.template and not qemu:
            raise VfmigError("a template is for a migration whose other end is a QEMU")
        if qemu and self.role == "source" and not self.template:
            raise VfmigError("a source needs a template to play the machine of a QEMU")
        if qemu and self.role == "target" and self.template and not Path(self.template).parent.is_dir():
            raise VfmigError(f"there is no folder for the template {self.template}")
