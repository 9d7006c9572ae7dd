# SPDX-License-Identifier: GPL-2.0-or-later
"""Legal migrations of many shapes, as scripts of bytes: for tests that draw one and then disturb it."""

from __future__ import annotations

from dataclasses import dataclass

from mockdev.wire import writer
from mockdev.wire.structs import Command, RamFlag, Tag, VfioTag
from tests.canaries.edits import END, EOS, FLUSH, section
from tests.canaries.script import BACK, MACHINE, MAIN, PAGE, UUID, Script, config_payload, pages

NAMES = ("0000:00:02.0/vfio", "0000:00:03.0/vfio", "0000:00:04.0/vfio")


@dataclass(frozen=True)
class Shape:
    """channels, devices: how many; buffers: which device's next buffer goes over which channel, in order of
    sending; rounds: scans of RAM before the last one; precopy: PARTs of the first device.
    """

    channels: int
    devices: int
    buffers: tuple[tuple[int, int], ...]
    rounds: int
    precopy: int
    return_path: bool


class _Numbers:
    """The numbers of RAM and SYNC packets."""

    def __init__(self) -> None:
        self.last = -1

    def next(self) -> int:
        self.last += 1
        return self.last


def build(shape: Shape) -> Script:
    """The migration of that shape."""
    s = Script()
    numbers = _Numbers()
    _set_up(s, shape, numbers)
    for part in range(shape.precopy):
        block = writer.vfio_data(4), bytes(4)
        s.add(f"vf0.part{part}", MAIN, section(Tag.SECTION_PART, 3, *block, END))
    for number in range(shape.rounds):
        _scan(s, shape, numbers, f"round{number}", Tag.SECTION_PART)
    s.add("switchover", MAIN, writer.command(Command.SWITCHOVER_START))
    _buffers(s, shape)
    _scan(s, shape, numbers, "last", Tag.SECTION_END)
    for device in range(shape.devices):
        s.add(f"vf{device}.end", MAIN, section(Tag.SECTION_END, 3 + device, END))
    for device in range(shape.devices):
        full = section(Tag.SECTION_FULL, 3 + device, END, name=NAMES[device])
        s.add(f"vf{device}.full", MAIN, full)
    state = writer.globalstate("running")
    s.add("globalstate", MAIN, section(Tag.SECTION_FULL, 9, state, name="globalstate"))
    described = [writer.opaque_description(name, 0, 8) for name in NAMES[: shape.devices]]
    s.add("eof", MAIN, writer.end_of_stream([*described, writer.globalstate_description()]))
    if shape.return_path:
        s.add("shut", BACK, writer.shut(0))
    return s


def _set_up(s: Script, shape: Shape, numbers: _Numbers) -> None:
    s.add("header", MAIN, writer.stream_header())
    s.add("configuration", MAIN, writer.configuration(MACHINE, uuid=UUID))
    if shape.return_path:
        s.add("open", MAIN, writer.command(Command.OPEN_RETURN_PATH))
        s.add("ping", MAIN, writer.ping(1))
        s.add("pong", BACK, writer.pong(b"\0\0\0\1"))
    for channel in range(shape.channels):
        s.add(f"init{channel}", str(channel), writer.init_packet(channel, UUID))
    _sync(s, shape, numbers, "start")
    blocks = writer.ram_blocks([("pc.ram", shape.channels * PAGE)])
    s.add("ram.start", MAIN, section(Tag.SECTION_START, 2, blocks, FLUSH, EOS, name="ram", version=4))
    for device in range(shape.devices):
        setup = writer.vfio_tag(VfioTag.DEV_SETUP_STATE), END
        s.add(f"vf{device}.start", MAIN, section(Tag.SECTION_START, 3 + device, *setup, name=NAMES[device]))


def _scan(s: Script, shape: Shape, numbers: _Numbers, label: str, tag: Tag) -> None:
    """Every channel sends one page; then all are in step."""
    for channel in range(shape.channels):
        head = writer.ram_packet(numbers.next(), "pc.ram", [channel * PAGE], [])
        s.add(f"{label}.ram{channel}", str(channel), head, pages(1))
    _sync(s, shape, numbers, label)
    s.add(f"{label}.ram", MAIN, section(tag, 2, writer.ram_mark(RamFlag.MULTIFD_FLUSH), EOS))


def _sync(s: Script, shape: Shape, numbers: _Numbers, label: str) -> None:
    for channel in range(shape.channels):
        s.add(f"{label}.sync{channel}", str(channel), writer.sync_packet(numbers.next()))


def _buffers(s: Script, shape: Shape) -> None:
    """The data buffers as the shape has them, then each device's config buffer."""
    following = [0] * shape.devices
    for device, channel in (*shape.buffers, *((device, 0) for device in range(shape.devices))):
        idx = following[device]
        following[device] += 1
        config = sum(d == device for d, _ in shape.buffers) == idx
        data = config_payload() if config else bytes((device + 1, idx + 1)) * 8
        head = writer.device_state_packet(NAMES[device], 0, idx, len(data), config=config)
        s.add(f"vf{device}.{idx}", str(channel), head, data)
