# SPDX-License-Identifier: GPL-2.0-or-later
"""A device as a simulated endpoint holds it: the production device, whose waits are the scheduler's."""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator
from typing import TypeVar

import xxhash

from mockdev.device.device import Device
from mockdev.device.files import DataFile, NotYet
from mockdev.device.image import Pattern
from mockdev.device.saving import SaveFile
from mockdev.errors import DeviceError, LocalProtocolError, RemoteProtocolError
from mockdev.journal import AnyLine, Image, Mark, Verified, failed_arc
from mockdev.journal import State as StateLine
from mockdev.vfio.fsm import next_step
from mockdev.vfio.uapi import State
from mockdev.wire import writer
from mockdev.wire.structs import VfioTag
from verifier.simulation.world import Wait, World

T = TypeVar("T")
Result = Generator[Wait, None, T]

CONFIG_STATE = writer.vfio_tag(VfioTag.DEV_CONFIG_STATE)
END_OF_STATE = writer.vfio_tag(VfioTag.END_OF_STATE)


class Slot:
    """One device of an endpoint. say: journals a line. patterns: what its state must be.

    Errors: DeviceError, as the device's; its waits are yielded.
    """

    def __init__(self, world: World, say: Callable[[AnyLine], None], device: Device) -> None:
        self.world = world
        self.say = say
        self.device = device
        self.name = device.name
        self.file: DataFile | None = None
        self.configured = False
        self.bytes_passed = 0
        self._digest = xxhash.xxh3_128()
        self._config_digest = ""
        device.on_fault = lambda _now_ns: say(Mark(t=world.now_ns, name="fault"))

    # -- states --------------------------------------------------------------------------------------

    def set_state(self, target: State) -> Result[None]:
        """Walk to a state, one journalled arc after the other."""
        device = self.device
        while device.state is not target:
            yield from self.arc(next_step(device.state, target, device.flags))

    def arc(self, new: State) -> Result[None]:
        """One arc."""
        device = self.device
        old = device.state
        try:
            file = yield from self._call(lambda now_ns: device.set_state(now_ns, new))
        except DeviceError as error:
            for line in failed_arc(
                self.world.now_ns,
                self.name,
                old=old.name,
                asked=new.name,
                now=device.state.name,
                errno=error.errno,
            ):
                self.say(line)
            raise
        if file is not None:
            self.file = file
        self.say(self._arc_line(old, new))

    def reset(self) -> Result[None]:
        """Back to RUNNING, from whatever state."""
        old = self.device.state
        yield from self._call(self.device.reset)
        self.file = None
        self.say(self._arc_line(old, State.RUNNING))

    @property
    def in_precopy(self) -> bool:
        """Whether a save session is open and the device not yet stopped."""
        return self.device.state in (State.PRE_COPY, State.PRE_COPY_P2P)

    # -- saving --------------------------------------------------------------------------------------

    def try_read(self, size_max: int) -> list[memoryview] | NotYet:
        """The next bytes of the save file as views; [] at the end; NotYet: not before its time."""
        try:
            views = self._open_file().read(self.world.now_ns, size_max)
        except DeviceError as error:
            raise self._named(error) from None
        if type(views) is list:
            for view in views:
                self._digest.update(view)
                self.bytes_passed += len(view)
        return views

    def read(self, size_max: int) -> Result[list[memoryview]]:
        """As try_read, waiting; [] also at the pause of PRE_COPY."""
        while True:
            try:
                views = self.try_read(size_max)
            except DeviceError as error:
                if error.errno != errno.ENOMSG:
                    raise
                return []
            if not isinstance(views, NotYet):
                return views
            yield views.ready_ns

    def precopy_left(self) -> Result[tuple[int, int]]:
        """(initial, dirty) bytes that PRE_COPY still has."""
        file = self._open_file()
        if not isinstance(file, SaveFile):
            raise LocalProtocolError(f"{self.name} has no save file")
        info = yield from self._call(lambda now_ns: self.device.precopy_info(now_ns, file))
        return info.initial_bytes, info.dirty_bytes

    def config_payload(self) -> bytes:
        """The config buffer's bytes: the PCI state between its two tags."""
        config = self.device.save_config()
        self._config_digest = _text(xxhash.xxh3_128(config))
        return CONFIG_STATE + config + END_OF_STATE

    # -- loading -------------------------------------------------------------------------------------

    def load(self, view: memoryview) -> Result[None]:
        """Write bytes to the resume file, to the last one."""
        file = self._open_file()
        self._digest.update(view)
        self.bytes_passed += len(view)
        while True:
            now_ns = self.world.now_ns
            try:
                written = file.write(now_ns, view)
            except DeviceError as error:
                raise self._named(error) from None
            view = view[written.consumed :]
            if written.ready_ns > now_ns:
                yield written.ready_ns
            elif not view:
                return

    def load_config_payload(self, payload: memoryview) -> Result[None]:
        """Load a config buffer. RemoteProtocolError: its tags are not there, or the device refuses it."""
        if payload[:8] != CONFIG_STATE or payload[-8:] != END_OF_STATE:
            raise RemoteProtocolError(f"the config buffer of {self.name} is none", field="VFIO tag")
        yield from self.load_config(bytes(payload[8:-8]))

    def load_config(self, config: bytes) -> Result[None]:
        """Load the PCI state."""
        self._config_digest = _text(xxhash.xxh3_128(config))
        yield from self._call(lambda now_ns: self.device.load_config(now_ns, config))
        self.configured = True

    # -- what it came to -----------------------------------------------------------------------------

    def journal_image(self) -> None:
        """Everything has passed: journal size and digest."""
        self.say(
            Image(
                t=self.world.now_ns,
                device=self.name,
                size=self.bytes_passed,
                digest=_text(self._digest),
                config_digest=self._config_digest,
            )
        )

    def verify(self, pattern: Pattern, size: int) -> bool:
        """Compare the image with what it must be, and journal it."""
        image = self.device.image
        difference = pattern.verify(image)
        wrong_at = None if difference is None else difference.offset
        if wrong_at is None and len(image) != size:
            wrong_at = min(len(image), size)
        equal = wrong_at is None
        self.say(Verified(t=self.world.now_ns, device=self.name, equal=equal, wrong_at=wrong_at))
        return equal

    # -- inside --------------------------------------------------------------------------------------

    def _open_file(self) -> DataFile:
        if self.file is None:
            raise LocalProtocolError(f"{self.name} has no data file open")
        return self.file

    def _call(self, attempt: Callable[[int], T | NotYet]) -> Result[T]:
        while True:
            try:
                result = attempt(self.world.now_ns)
            except DeviceError as error:
                raise self._named(error) from None
            if not isinstance(result, NotYet):
                return result
            yield result.ready_ns

    def _named(self, error: DeviceError) -> DeviceError:
        error.device = self.name
        return error

    def _arc_line(self, old: State, new: State) -> StateLine:
        return StateLine(t=self.world.now_ns, device=self.name, old=old.name, new=new.name)


def _text(digest: xxhash.xxh3_128) -> str:
    return "xxh3-128:" + digest.hexdigest()
