# SPDX-License-Identifier: GPL-2.0-or-later
"""A device as an endpoint holds it: its memory, its lock, the waits that its commands cost, its digests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import TypeVar

import xxhash

from mockdev.device.config import parse_config_state
from mockdev.device.device import Device, Precopy
from mockdev.device.faults import device_faults
from mockdev.device.files import DataFile, NotYet
from mockdev.device.image import Pattern
from mockdev.device.resuming import ResumeFile, Span
from mockdev.device.saving import Plan, SaveFile
from mockdev.device.timing import PROFILES, Firmware, Profile
from mockdev.errors import DeviceError, LocalProtocolError, RemoteProtocolError
from mockdev.faultspec import parse_all
from mockdev.journal import Image, Verified, failed_arc
from mockdev.journal import State as StateLine
from mockdev.memory import allocate
from mockdev.runtime.session import Session
from mockdev.vfio.fsm import next_step
from mockdev.vfio.mlx5_stream import RECORD_HEADER, Tag
from mockdev.vfio.uapi import State
from mockdev.wire.structs import VfioTag

T = TypeVar("T")

_UNDIGESTED_VIEWS_MAX = 1 << 16  # as many as keep 64 GiB of full buffers waiting, in 12 MiB
_ASIDE_BYTES_MAX = 1 << 20

_CONFIG_STATE = VfioTag.DEV_CONFIG_STATE.to_bytes(8, "big")
_END_OF_STATE = VfioTag.END_OF_STATE.to_bytes(8, "big")
_IDENTITY = {  # what no presentation changes
    "vendor": slice(0x00, 0x02),
    "device": slice(0x02, 0x04),
    "class": slice(0x08, 0x0C),
    "subsystem vendor": slice(0x2C, 0x2E),
    "subsystem": slice(0x2E, 0x30),
}
_PRECOPY = (State.PRE_COPY, State.PRE_COPY_P2P)


def is_free(profile: Profile) -> bool:
    """Whether no command of this profile takes time."""
    return not any(value for name, value in vars(profile).items() if name.endswith("_ns"))


class Slot:
    """One device of an endpoint. Calls wait as long as the device takes, unless they say otherwise.

    foreign: the other end is a QEMU, which presents the device's PCI side in its own way. config: the PCI
    state that was loaded. configured: its PCI state, the last thing to pass, has passed. bytes_passed: of its
    stream, saved or loaded here. One thread at a time may read, and one may load.

    The stream is digested by `journal_image`, not while it passes and time counts. A source digests the views
    that it read, whose memory nothing changes; a target what it loaded as the device has it in the end, with
    the headers that came with it.
    Errors: DeviceError, named after the device; StoppedError when the session ends meanwhile.
    """

    def __init__(self, session: Session, idstr: str, device: Device, lock: AbstractContextManager[object]):
        self.session = session
        self.idstr = idstr
        self.device = device
        self.foreign = session.migration.peer == "qemu"
        self.config = b""
        self.file: DataFile | None = None
        self.configured = False
        self.bytes_passed = 0
        self._lock = lock
        self._digest = xxhash.xxh3_128()
        self._read: list[memoryview] = []  # not digested yet
        self._record: Span | None = None  # the last one that `landing` knows of
        self._config_digest = ""
        device.on_fault = lambda _now_ns: session.mark("fault")

    # -- states --------------------------------------------------------------------------------------

    def set_state(self, target: State) -> None:
        """Walk to a state, one journalled arc after the other."""
        device = self.device
        while device.state is not target:
            old = device.state
            new = next_step(old, target, device.flags)
            try:
                file = self._call(partial(self._arc, new))
            except DeviceError as error:
                for line in failed_arc(
                    self.session.clock.now_ns(),
                    self.idstr,
                    old=old.name,
                    asked=new.name,
                    now=device.state.name,
                    errno=error.errno,
                ):
                    self.session.journal.write(line)
                raise
            if file is not None:
                self.file = file
            self._journal_arc(old, new)

    def reset(self) -> None:
        """Back to RUNNING, from whatever state; what it was to save or had loaded is lost."""
        old = self.device.state
        self._call(self.device.reset)
        self.file = None
        self._journal_arc(old, State.RUNNING)

    def _arc(self, new: State, now_ns: int) -> DataFile | NotYet | None:
        return self.device.set_state(now_ns, new)

    @property
    def in_precopy(self) -> bool:
        """Whether a save session is open and the device not yet stopped."""
        return self.device.state in _PRECOPY

    # -- saving --------------------------------------------------------------------------------------

    def try_read(self, size_max: int) -> list[memoryview] | NotYet:
        """The next bytes of the save file as views; [] at the end; NotYet: not before its time."""
        file = self._open_file()
        try:
            with self._lock:
                views = file.read(self.session.clock.now_ns(), size_max)
        except DeviceError as error:
            raise self._named(error, "reading its state") from None
        if not isinstance(views, NotYet):
            self._read += views
            if len(self._read) > _UNDIGESTED_VIEWS_MAX:
                self._digest_passed()
            self.bytes_passed += sum(map(len, views))
        return views

    def read(self, size_max: int) -> list[memoryview]:
        """As try_read, waiting."""
        while isinstance(views := self.try_read(size_max), NotYet):
            self.session.sleep_until(views.ready_ns)
        return views

    def precopy_info(self) -> Precopy:
        """What PRE_COPY still has."""
        file = self._open_file()
        if not isinstance(file, SaveFile):
            raise LocalProtocolError(f"{self.idstr} has no save file")
        return self._call(lambda now_ns: self.device.precopy_info(now_ns, file))

    def config_payload(self) -> bytes:
        """The config buffer's bytes: the PCI state between its two tags."""
        config = self.device.save_config()
        self._config_digest = _text(xxhash.xxh3_128(config))
        self.configured = True
        return _CONFIG_STATE + config + _END_OF_STATE

    # -- loading -------------------------------------------------------------------------------------

    def load(self, view: memoryview) -> None:
        """Write bytes to the resume file, to the last one."""
        file = self._open_file()
        self.bytes_passed += len(view)
        clock = self.session.clock
        while True:
            now_ns = clock.now_ns()
            try:
                with self._lock:
                    consumed, ready_ns = file.write(now_ns, view)
            except DeviceError as error:
                raise self._named(error, "loading its state") from None
            if ready_ns > now_ns:
                self.session.sleep_until(ready_ns)
            elif consumed == len(view):
                break
            view = view[consumed:]
        if isinstance(file, ResumeFile) and file.aside_bytes > _ASIDE_BYTES_MAX:
            self._digest_passed()

    def landing(self, start: int, size: int) -> memoryview | None:
        """Where `size` bytes from offset `start` of the stream end up; None if that is not certain yet.

        They are fewer when their record ends before: a header follows, which `foresee` is to be told. What is
        received there and then given to `load` needs no copy. start: never less than the last time.
        """
        known = self._record
        file = self.file
        span = file.span if isinstance(file, ResumeFile) else None
        if span is not None and (known is None or span.start > known.start):
            self._record = known = span
        if known is None or not known.start <= start < known.start + known.size:
            return None
        left = known.start + known.size - start
        if size > left and not self.device.firmware.profile.records:
            return None  # more than fits, and no header behind it
        at = known.image_at + start - known.start
        return self.device.memory[at : at + min(size, left)]

    def foresee(self, header: memoryview) -> None:
        """The header behind the last record that `landing` knows has come; it need not be loaded yet."""
        size, _, tag = RECORD_HEADER.unpack(header)
        known = self._record
        if known is not None and tag == Tag.FW_DATA:
            image_at = known.image_at + known.size
            if image_at + size <= len(self.device.memory):
                self._record = Span(known.start + known.size + RECORD_HEADER.size, image_at, size)

    def load_config_payload(self, payload: memoryview) -> None:
        """Load a config buffer. RemoteProtocolError: its tags are not there, or the device refuses it."""
        if bytes(payload[:8]) != _CONFIG_STATE:
            raise RemoteProtocolError(
                f"the config buffer of {self.idstr} begins with {bytes(payload[:8]).hex()}", field="VFIO tag"
            )
        if len(payload) < 16 or bytes(payload[-8:]) != _END_OF_STATE:
            raise RemoteProtocolError(
                f"the config buffer of {self.idstr} ends with {bytes(payload[-8:]).hex()}", field="VFIO tag"
            )
        self.load_config(bytes(payload[8:-8]))

    def load_config(self, config: bytes) -> None:
        """Load the PCI state."""
        self._config_digest = _text(xxhash.xxh3_128(config))
        if self.foreign:
            self.appear(config)
        self._call(lambda now_ns: self.device.load_config(now_ns, config))
        self.configured = True
        self.config = config

    def appear(self, config: bytes) -> None:
        """Look the way a QEMU presents the device, which leaves capabilities out and changes others.

        RemoteProtocolError: the PCI state is none, or another kind of device's.
        """
        pci = self.device.pci
        state = parse_config_state(config, pci.identity.vectors)
        for name, place in _IDENTITY.items():
            if state.config[place] != pci.config[place]:
                raise RemoteProtocolError(
                    f"{self.idstr}: {name} {_shown(state.config[place])}, here {_shown(pci.config[place])}",
                    field="config",
                )
        pci.config[:] = state.config
        pci.msix_table[:] = state.msix_table
        pci.msix_pending[:] = state.msix_pending

    # -- what it came to -----------------------------------------------------------------------------

    def journal_image(self) -> None:
        """If everything has passed, journal size and digest. It takes its time: after all that is timed."""
        if not self.configured:
            return
        self._digest_passed()
        self.session.journal.write(
            Image(
                t=self.session.clock.now_ns(),
                device=self.idstr,
                size=self.bytes_passed,
                digest=_text(self._digest),
                config_digest=self._config_digest,
            )
        )

    def verify(self, seed: int, size: int) -> bool:
        """Compare the image with what it must be, and journal it."""
        image = self.device.image
        wrong_at: int | None = None
        difference = Pattern(seed, self.idstr).verify(image)
        if difference is not None:
            wrong_at = difference.offset
        elif len(image) != size:
            wrong_at = min(len(image), size)
        self.session.journal.write(
            Verified(
                t=self.session.clock.now_ns(),
                device=self.idstr,
                equal=wrong_at is None,
                wrong_at=wrong_at,
            )
        )
        return wrong_at is None

    # -- inside --------------------------------------------------------------------------------------

    def _digest_passed(self) -> None:
        parts = self.file.passed() if isinstance(self.file, ResumeFile) else self._read
        for part in parts:
            self._digest.update(part)
        self._read.clear()

    def _open_file(self) -> DataFile:
        if self.file is None:
            raise LocalProtocolError(f"{self.idstr} has no data file open")
        return self.file

    def _call(self, attempt: Callable[[int], T | NotYet]) -> T:
        while True:
            try:
                with self._lock:
                    result = attempt(self.session.clock.now_ns())
            except DeviceError as error:
                raise self._named(error, "") from None
            if not isinstance(result, NotYet):
                return result
            self.session.sleep_until(result.ready_ns)

    def _named(self, error: DeviceError, doing: str) -> DeviceError:
        message = str(error).partition(": ")[2]
        if self.idstr not in message:
            message = f"{self.idstr}: {message}"
        return DeviceError(error.errno, f"{doing}: {message}" if doing else message, device=self.idstr)

    def _journal_arc(self, old: State, new: State) -> None:
        now_ns = self.session.clock.now_ns()
        self.session.journal.write(StateLine(t=now_ns, device=self.idstr, old=old.name, new=new.name))


def make_slots(session: Session, *, filled: bool) -> list[Slot]:
    """The endpoint's devices, all of one PF. filled: with the state that seed and name say; else empty."""
    migration = session.migration
    profile = PROFILES[migration.profile]
    firmware = Firmware(profile)
    free = is_free(profile)
    shared = threading.Lock()
    plan = Plan(precopy_bytes=migration.precopy_bytes, chunk_bytes=migration.chunk_bytes)
    slots = []
    specs = parse_all(migration.faults, migration.vfs, migration.channels)
    for number, idstr in enumerate(migration.devices):
        memory = allocate(migration.state_bytes, session.check)
        if filled:
            Pattern(migration.seed, idstr).fill(memory)
        faults = device_faults(specs, session.config.role, number)
        device = Device(idstr, memory, firmware, plan=plan, faults=faults)
        # Without costs the devices share nothing, and each may be in another thread's hands.
        slots.append(Slot(session, idstr, device, threading.Lock() if free else shared))
    return slots


def _shown(little_endian: bytes | bytearray) -> str:
    return little_endian[::-1].hex()


def _text(digest: xxhash.xxh3_128) -> str:
    return "xxh3-128:" + digest.hexdigest()
