# SPDX-License-Identifier: GPL-2.0-or-later
"""Where an invariant's line runs: the last that is allowed, and the first that is not.

A canary is far over the line. These stand on both sides of it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mockdev.journal import AnyLine, Begin, Connected, End, Image, Loaded, Read, Received, Sent, Wrote
from mockdev.wire import writer
from mockdev.wire.structs import (
    MULTIFD_DEVICE_STATE,
    MULTIFD_INIT,
    MULTIFD_RAM,
    Command,
    MultifdFlag,
    RamFlag,
    ReturnPath,
    Tag,
    VfioTag,
)
from tests.canaries.bench_of_one import judge
from tests.canaries.edits import (
    END,
    EOS,
    FLUSH,
    Edit,
    be32,
    device_field,
    ram_field,
    resize,
    section,
    vfio_field,
)
from tests.canaries.lent import lend, retold
from tests.canaries.ram import no_pages
from tests.canaries.script import (
    BACK,
    CONFIG,
    CONFIGURED,
    DEVICES,
    MACHINE,
    MAIN,
    PAGE,
    RAM_BYTES,
    UUID,
    UUID_TEXT,
    Piece,
    Script,
    buffer,
    config_payload,
    good,
    packet,
    pages,
)
from verifier.check import check_path
from verifier.history import facts as facts_module
from verifier.history.facts import Facts
from verifier.history.observation import Said
from verifier.invariants.description import described_devices
from verifier.invariants.feed import Feed
from verifier.invariants.indexes import IndexSet

VF = DEVICES[0]
MIB = 1 << 20
number = writer.number64
YES, NO = True, False


def ids(script: Script) -> set[str]:
    """What a script violates."""
    return {violation.id for violation in judge(script, lines=True).violations}


def told(role: str, *lines: AnyLine) -> set[str]:
    """What these lines of one end's journal violate, alone."""
    feed = Feed()
    for number, line in enumerate(lines):
        feed.say(Said(role, line, f"{role}.jsonl", number, 1))
    return {violation.id for violation in feed.report().violations}


def received(idx: int, size: int, queued_bytes: int = 0) -> Received:
    """A line of the target's; its own figure may be anything."""
    return Received(t=idx, device=VF, idx=idx, size=size, channel="0", queued_bytes=queued_bytes)


def loaded(idx: int, size: int = 10, queued_bytes: int = 0, *, config: bool = False) -> Loaded:
    """Another one."""
    return Loaded(t=idx, device=VF, idx=idx, size=size, queued_bytes=queued_bytes, config=config)


@pytest.mark.parametrize(
    ("lines", "accused"),
    [
        ([received(0, 10, 100)], NO),
        ([received(0, 10, 101)], YES),
        ([received(-1, 101, 101)], NO),  # of the main channel
        ([received(1, 60), received(2, 40)], NO),
        ([received(1, 60), received(2, 40), received(3, 1)], YES),
        ([received(0, 80), received(1, 60), received(2, 40)], NO),  # a loader may have the first by now
        ([received(0, 80), received(1, 60), received(2, 40), received(3, 1)], YES),
        ([received(1, 100), received(1, 100)], NO),  # the same one: DS-14's
        ([received(0, 50), received(1, 100), loaded(0, 50), received(2, 100)], NO),
        ([received(0, 50), received(1, 100), loaded(0, 50), received(2, 100), received(3, 1)], YES),
        ([loaded(0, 50), received(0, 50), received(1, 90), received(2, 100)], NO),  # two threads write
        ([loaded(0, 50), received(0, 50), received(1, 90), received(2, 100), received(3, 1)], YES),
    ],
)
def test_bytes_that_wait_reach_the_cap_and_no_further(lines: list[AnyLine], accused: bool) -> None:
    begin = Begin(t=0, role="target", queue_cap=100)
    assert ("BC-4" in told("target", begin, *lines)) == accused
    assert "BC-4" not in told("target", Begin(t=0, role="target"), *lines)  # no cap
    assert "BC-4" not in told("target", *lines)  # none that is known


@pytest.mark.parametrize(
    ("line", "accused"),
    [
        (loaded(3, config=True), NO),
        (loaded(3, queued_bytes=1, config=True), YES),
        (loaded(0, queued_bytes=1, config=True), YES),
        (loaded(3, queued_bytes=1), NO),
        (loaded(-1, queued_bytes=1, config=True), NO),  # on the main channel
    ],
)
def test_only_the_last_buffer_leaves_nothing_queued(line: AnyLine, accused: bool) -> None:
    assert ("BC-7" in told("target", Begin(t=0, role="target"), line)) == accused


def config_of(size: int) -> Edit:
    """A config buffer of that size."""

    def edit(s: Script) -> None:
        fill = bytes(size - len(config_payload()) + len(CONFIG))
        data = config_payload()[:8] + fill + config_payload()[-8:]
        s.find("vf1.2").data = packet(1, 2, data, config=True)

    return edit


def block_of(size: int) -> Edit:
    """A block of device data on the main channel."""
    data = writer.vfio_data(size) + bytes(size) + END
    return lambda s: s.after("vf0.part", MAIN, section(Tag.SECTION_PART, 3, data))


def flags_of(label: str, flags: int) -> Edit:
    """A RAM or SYNC packet with these flags."""
    return lambda s: ram_field(s, label, "flags", be32(flags))


def zero_pages_only(s: Script) -> None:
    """A packet that names a method and has no page to compress."""
    s.find("ram2").data = writer.ram_packet(6, "pc.ram", [], [PAGE])
    flags_of("ram2", MultifdFlag.ZLIB)(s)


def another_name(idstr: bytes) -> Edit:
    """A device's packet with that field."""
    return lambda s: device_field(s, "vf1.0", "idstr", idstr)


def short_packet(size: int) -> Edit:
    """A packet with less than its VFIO header."""

    def edit(s: Script) -> None:
        s.find("vf1.0").data = s.find("vf1.0").data[: MULTIFD_DEVICE_STATE.size + size]
        device_field(s, "vf1.0", "next_packet_size", be32(size))

    return edit


def config_payload_of(data: bytes) -> Edit:
    """Another config buffer."""
    return lambda s: setattr(s.find("vf1.2"), "data", packet(1, 2, data, config=True))


def more_buffers(*idx: int, config: bool = False, channel: str = "1") -> Edit:
    """More buffers of the second device, after its first."""

    def edit(s: Script) -> None:
        for one in idx:
            s.after("vf1.0", channel, packet(1, one, bytes(8), config=config))

    return edit


def on_main(after: str, data: bytes) -> Edit:
    """Something more on the main channel."""
    return lambda s: s.after(after, MAIN, data)


def on_ram(label: str, data: bytes) -> Edit:
    """Records before the end of a section of RAM."""
    return lambda s: s.replace(label, EOS, data + EOS)


def both(*edits: Edit) -> Edit:
    """One after the other."""

    def edit(s: Script) -> None:
        for one in edits:
            one(s)

    return edit


def machine(name: str) -> Edit:
    """Another machine type."""
    return lambda s: setattr(s.find("configuration"), "data", writer.configuration(name))


def run_state(data: bytes) -> Edit:
    """Another globalstate: length and name."""
    return lambda s: s.patch("globalstate", 5 + 1 + len("globalstate") + 8, data.ljust(36, b"\0"))


def capabilities(*names: str) -> Edit:
    """Those that the configuration names."""
    data = writer.configuration("pc-q35-10.0", capabilities=names)
    return lambda s: setattr(s.find("configuration"), "data", data)


def set_up(*roles: str, **settings: object) -> Edit:
    """Ends that were set up otherwise; None: they do not say."""

    def edit(s: Script) -> None:
        told = {name: value for name, value in {**CONFIGURED, **settings}.items() if value is not None}
        for role in roles or ("source", "target"):
            s.edit(role, Begin, config=told)

    return edit


def target_of(*words: str) -> Edit:
    """A QEMU as target, with that command line."""
    return set_up("target", peer=None, ram_bytes=None, command=["qemu", *words])


def block_bytes(size: int) -> Edit:
    """Another length of pc.ram."""
    old, new = (writer.ram_blocks([("pc.ram", length)]) for length in (RAM_BYTES, size))
    return lambda s: s.replace("ram.start", old, new)


def third_connection(s: Script) -> None:
    """One that the source made and the capture lacks."""
    s.say("source", Connected, channel="2", local="", peer="")


def answers_early(before_ns: int) -> Edit:
    """The target answers so long before the return path is opened."""

    def edit(s: Script) -> None:
        opened = s.pieces.index(s.find("open"))
        for piece in s.pieces[opened:]:
            piece.time_ns += 5_000_000_000
        time_ns = s.pieces[opened].time_ns - before_ns
        s.pieces.insert(opened, Piece("early", BACK, writer.pong(b"\0\0\0\1"), time_ns))

    return edit


def says_shut_early(before_ns: int, value: int = 0) -> Edit:
    """SHUT comes so long before the end mark."""

    def edit(s: Script) -> None:
        end = s.pieces.index(s.find("eof"))
        for piece in s.pieces[end:]:
            piece.time_ns += 5_000_000_000
        s.pieces.insert(end, Piece("early", BACK, writer.shut(value), s.pieces[end].time_ns - before_ns))

    return edit


def answer(kind: ReturnPath, data: bytes = b"", after: str = "pong") -> Edit:
    """One more message on the return path."""
    return lambda s: s.after(after, BACK, writer.return_path_message(kind, data))


def start(number: int, name: str, version: int = 1) -> bytes:
    """A START section."""
    return section(Tag.SECTION_START, number, END, name=name, version=version)


def described(**changes: object) -> Edit:
    """Other words about globalstate in the description."""
    devices = [writer.opaque_description(name, 0, 8) for name in DEVICES]
    data = writer.end_of_stream([*devices, writer.globalstate_description() | changes])
    return lambda s: setattr(s.find("eof"), "data", data)


def without(*labels: str) -> Edit:
    """Pieces left out."""

    def edit(s: Script) -> None:
        for label in labels:
            s.drop(label)

    return edit


def second_instance(s: Script) -> None:
    """The second device has the instance id 1, wherever it is named."""
    for label in ("vf1.start", "vf1.full"):
        s.patch(label, 6 + len(NAME), be32(1))
    for label in ("vf1.0", "vf1.1", "vf1.2"):
        device_field(s, label, "instance_id", be32(1))


def without_channels(s: Script) -> None:
    """No multifd connection."""
    s.pieces[:] = [piece for piece in s.pieces if piece.where in (MAIN, BACK)]


def over_main(s: Script) -> None:
    """The second device's state on the main channel."""
    without("vf1.0", "vf1.1", "vf1.2")(s)
    s.replace("vf1.end", END, 5 * (writer.vfio_data(3) + b"abc") + END)
    s.replace("vf1.full", END, config_payload())


def cut_short(s: Script) -> None:
    """A channel that ends inside a packet."""
    s.after("sync0.2", "0", writer.sync_packet(99)[:100])


def images(**changes: str) -> Edit:
    """What both ends say of the first device's state."""

    def edit(s: Script) -> None:
        for role in ("source", "target"):
            s.edit(role, Image, where={"device": VF}, **changes)

    return edit


def init_field(label: str, name: str, data: bytes) -> Edit:
    """A field of an init packet."""
    return lambda s: s.patch(label, MULTIFD_INIT.place(name).offset, data)


def configured_uuid(uuid: bytes) -> Edit:
    """The configuration names the VM's uuid."""
    return lambda s: setattr(s.find("configuration"), "data", writer.configuration(MACHINE, uuid=uuid))


def no_zero_pages(s: Script) -> None:
    """Packets with data only."""
    for label, packet_num, numbers in (("ram0", 2, (0, 1)), ("ram1", 3, (3,))):
        offsets = [PAGE * page for page in numbers]
        s.find(label).data = writer.ram_packet(packet_num, "pc.ram", offsets, []) + pages(*numbers)


def refused(s: Script) -> None:
    """The target refuses."""
    s.find("shut").data = writer.shut(1)


SENT = writer.vfio_tag(VfioTag.DEV_INIT_DATA_SENT)
READY = writer.vfio_tag(VfioTag.DEV_CONFIG_LOAD_READY)
NAME, BIT = DEVICES[1].encode(), MultifdFlag.ZLIB
EARLY = section(Tag.SECTION_FULL, 8, b"xyz", name="early")
POSTCOPY = on_main("ping", writer.command(Command.POSTCOPY_RUN))

EDGES: list[tuple[str, Edit, bool]] = [
    ("BC-1", lambda s: resize(s, 1, 0, 1), NO),
    ("BC-1", lambda s: resize(s, 1, 0, 0), YES),
    ("BC-1", lambda s: resize(s, 1, 0, MIB), NO),
    ("BC-1", config_of(MIB + 1), NO),
    ("BC-3", lambda s: vfio_field(s, "vf1.2", 1, 1 << 26), NO),
    ("BC-3", lambda s: vfio_field(s, "vf1.2", 1, (1 << 26) + 1), YES),
    ("BC-5", block_of(1), NO),
    ("BC-5", block_of(MIB), NO),
    ("BC-5", block_of(MIB + 1), YES),
    ("BC-6", lambda s: ram_field(s, "ram1", "next_packet_size", be32(512 << 10)), NO),
    ("DS-1", flags_of("ram0", BIT), YES),
    ("DS-1", flags_of("sync0.1", MultifdFlag.SYNC | BIT), NO),
    ("DS-1", zero_pages_only, NO),
    ("DS-2", another_name(NAME.ljust(255, b"\0") + b"x"), YES),
    ("DS-2", another_name((NAME + b"\0X").ljust(256, b"\0")), YES),
    ("DS-2", lambda s: device_field(s, "vf1.0", "instance_id", be32(7)), YES),
    ("DS-3", short_packet(11), YES),
    ("DS-3", short_packet(0), NO),  # BC-2's
    ("DS-5", more_buffers(2), YES),
    ("DS-5", more_buffers(3), NO),
    ("DS-6", more_buffers(3), YES),
    ("DS-6", more_buffers(3, config=True), YES),
    ("DS-6", lambda s: s.swap("vf1.0", "vf1.2"), NO),
    ("DS-7", more_buffers(0), YES),  # no less than the last
    ("DS-7", more_buffers(0, channel="0"), NO),
    ("DS-8", config_payload_of(config_payload()[:8] + config_payload()[-8:]), NO),
    ("DS-8", config_payload_of(config_payload()[:8]), YES),
    ("DS-8", config_payload_of(config_payload()[:-8]), YES),
    ("DS-8", config_payload_of(config_payload()[8:]), YES),
    ("DS-10", more_buffers(4), YES),
    ("DS-10", more_buffers(3), NO),
    ("MP-2", flags_of("sync0.1", MultifdFlag.SYNC | BIT), YES),
    ("MP-2", both(flags_of("sync0.1", MultifdFlag.SYNC | BIT), machine("pc-q35-8.2")), NO),
    ("MP-2", flags_of("sync0.1", MultifdFlag.SYNC | 0x100), YES),
    ("MP-2", both(flags_of("sync0.1", MultifdFlag.SYNC | 0x100), machine("pc-q35-8.2")), YES),
    ("MP-2", flags_of("ram0", BIT | MultifdFlag.ZSTD), NO),  # MP-3's
    ("MP-3", flags_of("ram0", BIT), YES),
    ("MP-3", flags_of("ram0", BIT | MultifdFlag.ZSTD), YES),
    ("MP-3", flags_of("sync0.1", MultifdFlag.SYNC | BIT), NO),
    ("MP-4", lambda s: ram_field(s, "ram1", "pages_alloc", be32(129)), YES),
    ("MP-4", lambda s: ram_field(s, "sync0.1", "pages_alloc", be32(128)), YES),
    ("MP-4", both(lambda s: ram_field(s, "sync0.1", "pages_alloc", be32(1)), machine("pc-q35-8.2")), NO),
    ("MP-5", lambda s: setattr(s.find("ram2"), "data", writer.ram_packet(6, "pc.ram", [], 128 * [0])), NO),
    ("MP-6", lambda s: ram_field(s, "ram1", "ramblock", b"pc.rom"), YES),
    ("MP-6", lambda s: ram_field(s, "ram1", "ramblock", b"pc.ram".ljust(255, b"\0") + b"x"), YES),
    ("MP-6", lambda s: ram_field(s, "sync0.1", "ramblock", b"pc.rom"), NO),  # MP-13's
    ("MP-7", lambda s: s.patch("ram2", MULTIFD_RAM.size, number(RAM_BYTES - PAGE)), NO),
    ("MP-7", lambda s: s.patch("ram2", MULTIFD_RAM.size, number(RAM_BYTES)), YES),
    ("MP-7", lambda s: s.patch("ram2", MULTIFD_RAM.size, number(PAGE + PAGE // 2)), YES),
    ("MP-7", lambda s: s.patch("ram1", MULTIFD_RAM.size + 8, number(PAGE + 1)), YES),  # of a zero page
    ("MP-9", zero_pages_only, NO),
    ("MP-9", lambda s: ram_field(s, "sync0.1", "next_packet_size", be32(8)), NO),  # MP-13's
    ("MP-11", lambda s: ram_field(s, "ram1", "unused32", be32(1)), YES),
    ("MP-11", lambda s: s.patch("ram1", MULTIFD_RAM.size + 3 * 8, number(1)), YES),
    ("MP-11", lambda s: s.patch("ram1", MULTIFD_RAM.size + 127 * 8, number(1)), YES),
    ("MP-12", lambda s: ram_field(s, "ram0", "packet_num", number(3)), YES),
    ("MP-12", lambda s: ram_field(s, "sync1.2", "packet_num", number(9)), YES),
    ("MP-15", cut_short, YES),
    ("MP-16", lambda s: ram_field(s, "sync0.2", "packet_num", number(6)), YES),  # no more than the last
    ("MP-16", lambda s: ram_field(s, "sync0.2", "packet_num", number(99)), NO),
    ("MP-13", lambda s: ram_field(s, "sync0.1", "zero_pages", be32(1)), YES),
    ("MP-13", both(lambda s: ram_field(s, "sync0.1", "zero_pages", be32(1)), machine("pc-q35-8.2")), NO),
    ("MP-13", both(lambda s: ram_field(s, "sync0.1", "zero_pages", be32(1)), machine("pc-q35-9.0")), YES),
    ("RS-1", on_ram("ram.part", writer.ram_blocks([("pc.ram", RAM_BYTES)])), YES),
    ("RS-1", lambda s: s.patch("ram.start", 17, number((RAM_BYTES + PAGE) | RamFlag.MEM_SIZE)), YES),
    ("RS-4", on_ram("ram.part", number(PAGE | RamFlag.MULTIFD_FLUSH)), YES),
    ("RS-5", on_ram("ram.part", writer.ram_page(RamFlag.ZERO, RAM_BYTES - PAGE, "pc.ram")), NO),
    ("RS-5", on_ram("ram.part", writer.ram_page(RamFlag.ZERO, 0, "pc.rom")), YES),
    ("RS-5", on_ram("ram.part", writer.ram_page(RamFlag.ZERO, 0, "pc.ram")[:-1] + b"\1"), YES),
    ("RS-6", on_ram("ram.part", writer.ram_page(RamFlag.ZERO, 0, "pc.ram")), NO),
    ("RS-6", both(on_ram("ram.part", writer.ram_page(RamFlag.PAGE, 0, "pc.ram") + pages(0)), POSTCOPY), NO),
    ("RS-7", lambda s: s.swap("sync0.0", "ram0"), YES),
    ("RS-7", lambda s: s.swap("sync0.0", "vf0.0"), YES),
    ("RS-8", lambda s: s.drop("sync0.2"), YES),
    ("RS-8", on_ram("ram.part", FLUSH), YES),
    ("RS-8", lambda s: s.replace("ram.part", FLUSH, b""), YES),
    ("RS-8", both(lambda s: s.replace("ram.part", FLUSH, b""), machine("pc-q35-9.2")), NO),
    ("RS-8", both(on_ram("ram.part", FLUSH), machine("pc-q35-9.2")), YES),
    ("RS-10", lambda s: ram_field(s, "ram2", "packet_num", number(5)), NO),  # twice: MP-12's
    ("RS-10", lambda s: ram_field(s, "ram2", "packet_num", number(4)), YES),
    ("RS-12", lambda s: s.after("sync0.2", "0", packet(0, 9, b"x")), NO),  # is no RAM
    ("MP-1", lambda s: s.patch("sync0.0", 0, b"\x99"), YES),  # right behind the init packet
    ("FR-8", lambda s: s.patch("vf1.end", -5, b"\x55"), YES),  # no footer at all
    ("RS-1", lambda s: s.replace("ram.start", writer.ram_blocks([("pc.ram", RAM_BYTES)]), b""), YES),
    ("CH-4", init_field("init1", "id", bytes((2,))), YES),  # of two
    ("CH-4", both(init_field("init1", "id", bytes((2,))), cut_short), NO),
    ("CH-4", both(init_field("init1", "id", bytes((254,))), cut_short), NO),
    ("CH-4", both(init_field("init1", "id", bytes((255,))), cut_short), YES),
    ("CH-5", configured_uuid(UUID), NO),
    ("CH-5", configured_uuid(bytes(16)), YES),
    ("CH-5", lambda s: s.edit("target", Begin, uuid=UUID_TEXT.replace("1", "2")), YES),
    ("CH-5", lambda s: s.edit("target", Begin, uuid="none"), NO),
    ("CH-2", set_up("source", channels=3), YES),
    ("CH-2", set_up("target", channels=1), YES),
    ("CH-2", set_up(channels=3), YES),  # the source made too few
    ("CH-2", set_up(channels=1), YES),
    ("CH-2", both(set_up(channels=3), third_connection), NO),
    ("CH-2", both(set_up(channels=2), third_connection), NO),
    ("CH-2", both(set_up(channels=1), third_connection), YES),
    ("CH-2", set_up(channels=None), NO),
    ("CH-2", both(set_up("source", channels=3), third_connection), YES),  # they do not agree
    ("MP-14", both(set_up("source", zero_pages="none"), no_zero_pages), NO),
    ("EQ-1", both(images(digest="xxh3-128:0"), refused), NO),  # the wire may have less
    ("EN-1", both(without("globalstate"), lambda s: s.patch("eof", 1, b"\x55")), YES),
    ("EN-2", lambda s: s.patch("eof", 2, b"\xff\xff\xff\xff"), YES),
    ("RS-2", set_up("target", ram_bytes=RAM_BYTES + PAGE), YES),
    ("RS-2", set_up("source", ram_bytes=RAM_BYTES + PAGE), NO),
    ("RS-2", set_up("target", ram_bytes=None), NO),
    ("RS-2", set_up("target", ram_bytes=RAM_BYTES + PAGE, peer="qemu"), NO),
    ("RS-2", target_of("-m", "1M"), YES),
    ("RS-2", both(target_of("-m", "1M"), block_bytes(1 << 20)), NO),
    ("RS-2", both(target_of("-m", "2M"), block_bytes(1 << 20)), YES),
    ("RS-2", both(target_of("-m", "1G"), block_bytes(1 << 30)), NO),
    ("RS-2", target_of("-m", "1M", "-m", "2M"), NO),
    ("RS-2", target_of("-m", "size=1M"), NO),
    ("RS-2", target_of("-smp", "1M"), NO),
    ("RS-2", target_of("-m", "1M", "-object", "memory-backend-file,id=ram"), NO),
    ("MP-14", set_up("source", zero_pages="legacy"), YES),
    ("MP-14", set_up("source", zero_pages="none"), YES),
    ("MP-14", set_up("target", zero_pages="none"), NO),
    ("MP-14", set_up("source", zero_pages=None), NO),
    ("DS-12", set_up("source", transfer="main"), YES),
    ("DS-12", set_up("target", transfer="main"), YES),
    ("DS-12", set_up(transfer=None), NO),
    ("DS-6", more_buffers(2), NO),  # DS-5's
    ("DS-11", without("vf1.0", "vf1.1", "vf1.2"), YES),  # neither way
    ("DS-11", both(without("vf1.0", "vf1.1", "vf1.2"), cut_short), NO),
    ("DS-11", both(without("eof"), without_channels), NO),
    ("DS-11", without_channels, YES),
    ("DS-11", without("vf0.0", "vf0.1", "vf0.2", "vf0.3"), YES),
    ("DS-11", over_main, NO),
    ("DS-11", on_main("vf0.part", section(Tag.SECTION_PART, 3, 2 * (writer.vfio_data(1) + b"x") + END)), YES),
    ("DS-11", on_main("vf0.part", section(Tag.SECTION_PART, 3, writer.vfio_data(1) + b"x" + END)), NO),
    ("DS-11", on_main("vf0.part", section(Tag.SECTION_PART, 3, config_payload())), YES),
    ("DS-11", lambda s: s.replace("vf1.start", writer.vfio_tag(VfioTag.DEV_SETUP_STATE) + END, END), YES),
    ("DS-11", second_instance, NO),
    ("DS-2", second_instance, NO),
    ("DS-2", another_name(b"x" * 256), YES),  # no NUL at all
    ("MP-6", lambda s: ram_field(s, "ram1", "ramblock", b"x" * 256), YES),
    ("DS-6", both(without("vf1.0"), lambda s: vfio_field(s, "vf1.2", 1, 0)), YES),
    ("DS-6", both(without("vf1.1", "vf1.2"), short_packet(11)), NO),  # DS-3's
    ("EQ-1", images(digest="xxh3-128:0"), YES),  # the wire has another
    ("EQ-1", images(config_digest="xxh3-128:0"), YES),
    ("EQ-1", images(config_digest=""), NO),
    ("EQ-5", lambda s: s.say("source", Sent, device=VF, idx=9, size=1, channel="0"), YES),
    ("EQ-5", lambda s: s.say("source", Sent, device=VF, idx=-1, size=1, channel="main"), NO),
    ("EQ-5", both(lambda s: s.say("source", Sent, device=VF, idx=9, size=1, channel="0"), cut_short), NO),
    ("SM-1", on_main("switchover", writer.command(Command.SWITCHOVER_START)), YES),
    ("SM-2", on_main("switchover", writer.command(Command.SWITCHOVER_START)), NO),  # SM-1's
    ("SM-2", on_main("switchover", writer.ping(2)), YES),
    ("SM-2", on_main("switchover", section(Tag.SECTION_PART, 3, SENT)), YES),
    ("SM-2", on_main("switchover", EARLY), YES),
    ("SM-2", on_main("vf0.sent", EARLY), NO),
    ("SM-2", on_main("ram.end", writer.ping(2)), NO),
    ("SM-2", both(lambda s: s.swap("switchover", "ram.end"), POSTCOPY), NO),
    ("SM-3", on_main("ping", EARLY), NO),
    ("SM-3", on_main("ram.end", EARLY), YES),
    ("SM-3", both(on_main("ram.end", EARLY), POSTCOPY), NO),
    ("SM-6", on_main("vf0.sent", section(Tag.SECTION_PART, 3, SENT)), YES),
    ("SM-6", on_main("vf0.sent", section(Tag.SECTION_PART, 4, SENT)), NO),  # of the other device
    ("SM-6", both(on_main("vf0.sent", section(Tag.SECTION_PART, 3, SENT)), machine("pc-q35-11.1")), NO),
    ("SM-6", both(on_main("vf0.sent", section(Tag.SECTION_PART, 3, SENT)), machine("microvm")), NO),
    ("SM-7", run_state(be32(8) + b"running"), NO),
    ("SM-7", run_state(be32(7) + b"running"), YES),
    ("SM-7", run_state(be32(9) + b"running"), YES),
    ("SM-7", run_state(be32(8) + b"walking"), YES),
    ("SM-7", run_state(be32(10) + b"suspended"), NO),
    ("SM-8", lambda s: s.replace("vf1.full", END, READY), NO),
    ("FR-2", both(lambda s: s.drop("configuration"), refused), YES),
    ("FR-2", lambda s: s.drop("configuration"), NO),
    ("FR-3", capabilities("x-ignore-shared", "mapped-ram"), NO),
    ("FR-3", capabilities("x-ignore-shared", "multifd"), YES),
    ("FR-9", lambda s: s.replace("vf1.full", bytes((len(NAME),)) + NAME, b"\0"), YES),
    ("FR-12", on_main("ping", writer.command(Command.PING, bytes(3))), YES),
    ("FR-12", on_main("ping", writer.command(Command.PING, bytes(5))), YES),
    ("FR-13", lambda s: s.swap("open", "ping"), YES),
    ("FR-13", on_main("ping", writer.command(Command.OPEN_RETURN_PATH)), YES),
    ("FR-13", on_main("vf0.start", writer.ping(2)), NO),
    ("EN-2", lambda s: s.replace("eof", b'"page_size": 4096', b'"page_sizf": 4096'), YES),
    ("EN-2", lambda s: s.replace("eof", b'{"configuration":', b'{"configuration";'), YES),
    ("FR-6", on_main("vf1.start", start(4, DEVICES[1])), YES),
    ("FR-6", on_main("vf1.start", start(9, "dirty-bitmap")), NO),
    ("FR-6", on_main("vf1.end", section(Tag.SECTION_PART, 4, END)), YES),
    ("FR-6", lambda s: s.drop("vf1.end"), YES),
    ("FR-6", lambda s: s.drop("ram.end"), YES),
    ("FR-7", on_main("vf1.start", section(Tag.SECTION_FULL, 4, b"xyz", name="other")), YES),
    ("FR-7", on_main("vf1.start", section(Tag.SECTION_FULL, 9, b"xyz", name="other")), NO),
    ("FR-10", on_main("vf1.full", section(Tag.SECTION_FULL, 9, b"xyz", name="other")), NO),
    ("FR-11", lambda s: s.swap("vf0.full", "vf1.full"), YES),
    ("FR-11", on_main("vf1.full", section(Tag.SECTION_FULL, 9, b"xyz", name="other")), YES),
    ("FR-11", lambda s: s.drop("globalstate"), YES),
    ("FR-11", described(vmsd_name=None, fields=None), YES),
    ("FR-14", on_main("vf1.end", writer.ping(2)), YES),
    ("FR-14", on_main("vf1.end", start(9, "late")), YES),
    ("FR-14", on_main("globalstate", writer.ping(2)), YES),
    ("FR-14", on_main("vf1.end", writer.command(Command.SWITCHOVER_START)), NO),
    ("FR-14", on_main("switchover", writer.ping(2)), NO),
    ("FR-14", both(on_main("vf1.end", writer.ping(2)), POSTCOPY), NO),
    ("FR-16", lambda s: s.patch("ram.start", 13, be32(3)), YES),
    ("FR-16", on_main("vf1.start", start(9, "other", 7)), NO),
    ("FR-16", described(version=2), YES),
    ("FR-16", described(version="1"), NO),
    ("FR-16", described(version=2, name="other"), NO),  # FR-11's
    ("FR-17", on_main("vf0.part", start(9, "late")), YES),
    ("FR-17", on_main("ram.end", EARLY), NO),
    ("FR-17", on_main("vf1.start", EARLY), NO),
    ("FR-17", both(on_main("vf0.part", start(9, "late")), POSTCOPY), NO),
    ("MP-8", lambda s: s.patch("ram1", MULTIFD_RAM.size + 8, number(0)), YES),
    ("MP-8", lambda s: s.patch("ram2", MULTIFD_RAM.size, number(5 * PAGE)), NO),  # in the next round
    ("MP-8", no_pages, NO),  # MP-5's
    ("RS-13", lambda s: s.patch("ram1", MULTIFD_RAM.size + 16, number(4 * PAGE)), YES),  # the last one
    ("RS-13", lambda s: s.patch("ram0", MULTIFD_RAM.size, number(PAGE)), YES),  # the first
    ("RS-13", lambda s: s.patch("ram0", MULTIFD_RAM.size + 8, number(0)), NO),  # comes in the next round
    ("RP-1", answers_early(1_000_000_000), NO),
    ("RP-1", answers_early(1_000_000_001), YES),
    ("RP-2", answer(ReturnPath.PONG, bytes(3)), YES),
    ("RP-3", answer(ReturnPath.PONG, b"\0\0\0\1"), YES),
    ("RP-3", both(answer(ReturnPath.PONG, b"\0\0\0\1"), on_main("ping", writer.ping(1))), NO),
    ("RP-3", both(answer(ReturnPath.PONG, b"\0\0\0\2"), on_main("ping", writer.ping(1))), YES),
    ("RP-4", answer(ReturnPath.SWITCHOVER_ACK, after="shut"), YES),
    ("RP-5", answer(ReturnPath.SWITCHOVER_ACK), YES),
    ("RP-5", both(answer(ReturnPath.SWITCHOVER_ACK), machine("pc-q35-11.1")), NO),
    ("RP-5", both(answer(ReturnPath.SWITCHOVER_ACK), machine("microvm")), NO),
    ("RP-6", answer(ReturnPath.REQ_PAGES, bytes(12)), YES),
    ("RP-6", both(answer(ReturnPath.REQ_PAGES, bytes(12)), POSTCOPY), NO),
    ("RP-7", says_shut_early(1_000_000_000), NO),
    ("RP-7", says_shut_early(1_000_000_001), YES),
    ("RP-7", says_shut_early(1_000_000_001, 1), NO),  # it failed
    ("RP-8", refused, YES),
    ("RP-8", both(refused, lambda s: s.edit("target", End, outcome="failed")), NO),
    ("RP-8", both(refused, lambda s: s.edit("target", End, outcome="cancelled")), NO),
    ("RP-8", lambda s: s.edit("target", End, outcome="failed"), YES),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "accused"), [("fin", YES), ("rst", YES), ("cut", NO)])
def test_a_channel_ends_inside_a_packet(kind: str, accused: bool, tmp_path: Path) -> None:
    """Unless it is only the capture that ends there."""
    script = good()
    cut_short(script)
    script.ends["0"] = kind
    script.write_folder(tmp_path)
    assert ("MP-15" in {violation.id for violation in check_path(tmp_path).violations}) == accused


@pytest.mark.parametrize(("name", "edit", "accused"), EDGES)
def test_on_its_side_of_the_line(name: str, edit: Edit, accused: bool) -> None:
    script = good()
    edit(script)
    assert (name in ids(script)) == accused


@pytest.mark.parametrize(
    ("where", "before_ns", "kind", "accused"),
    [
        (MAIN, 1_000_000_000, "fin", NO),
        ("0", 1_000_000_000, "fin", NO),
        ("0", 1_000_000_001, "fin", YES),
        ("0", 1_000_000_001, "cut", NO),
    ],
)
def test_a_connection_is_closed_before_shut(
    where: str, before_ns: int, kind: str, accused: bool, tmp_path: Path
) -> None:
    script = good(journals=False)
    script.find("shut").time_ns += 5_000_000_000
    script.now_ns += 5_000_000_000
    script.closed_ns[where] = script.find("shut").time_ns - before_ns
    script.ends[where] = kind
    script.write_folder(tmp_path)
    assert ("EN-5" in {violation.id for violation in check_path(tmp_path).violations}) == accused


def recorded(**changes: object) -> Edit:
    """What run.json says."""
    return lambda s: s.record.update(changes)


def passed_less(role: str, kind: type) -> Edit:
    """A QEMU reads, or writes, one byte less of the second device."""
    return lambda s: s.edit(role, kind, where={"device": DEVICES[1], "offset": 40}, size=39)


def logged(*steps: str) -> Edit:
    """What the source's thread of the return path traces at the start."""
    lines = [f"4711@1700000000.000000:source_return_path_thread_{step} " for step in steps]
    return lambda s: s.logs.update(source=lines + s.logs["source"])


def unlogged(text: str) -> Edit:
    """The source's log has no such line."""
    return lambda s: s.logs.update(source=[line for line in s.logs["source"] if text not in line])


READ_TO_79: Edit = lambda s: s.edit("source", Read, where={"device": DEVICES[1], "size": 0}, offset=79)  # noqa: E731
DIFFERS = {"equal": False, "pages": 6, "devices": 2, "difference": "here"}
UNTOLD = {"equal": None, "pages": 0, "devices": 0}

OF_QEMUS: list[tuple[str, Edit, bool]] = [
    ("EQ-6", both(passed_less("source", Read), READ_TO_79), YES),
    ("EQ-6", passed_less("target", Wrote), YES),
    ("EQ-6", both(passed_less("source", Read), READ_TO_79, refused), NO),
    ("EQ-7", recorded(guest_ram=DIFFERS), YES),
    ("EQ-7", recorded(guest_ram=UNTOLD), NO),
    ("EQ-7", both(recorded(guest_ram=DIFFERS), refused), NO),  # it did not complete
    ("EQ-8", recorded(pci=DIFFERS), YES),
    ("EQ-8", recorded(pci=UNTOLD), NO),
    ("EQ-8", both(recorded(pci=DIFFERS), refused), NO),
    ("SM-4", unlogged("new state device"), YES),
    ("SM-5", logged("loop_top"), YES),
    ("SM-5", logged("loop_top", "switchover_acked"), NO),
    ("SM-5", lambda _: None, NO),  # the log does not tell of the return path
    ("SM-5", both(logged("loop_top"), unlogged("finish-migrate")), NO),  # the VM did not run
    ("TR-3", lambda s: retold(s, "source", "packet_num 3 ", "packet_num 2 "), YES),
    ("TR-3", lambda s: retold(s, "target", "packet_num 3 ", "packet_num 2 "), YES),
    ("TR-3", lambda s: retold(s, "target", "next packet size 8192", "next packet size 8191"), YES),
    ("TR-4", lambda s: retold(s, "source", "channel 0 packets 5", "channel 0 packets 4"), YES),
    ("TR-4", lambda s: retold(s, "target", "channel 0 packets 8", "channel 0 packets 9"), YES),
    (
        "TR-4",
        both(lambda s: retold(s, "target", "channel 0 packets 8", "channel 0 packets 9"), cut_short),
        NO,
    ),
]


@pytest.mark.parametrize(("name", "edit", "accused"), OF_QEMUS)
def test_on_its_side_of_the_line_between_qemus(name: str, edit: Edit, accused: bool, tmp_path: Path) -> None:
    script = good()
    lend(script)
    edit(script)
    script.write_folder(tmp_path)
    assert (name in {violation.id for violation in check_path(tmp_path).violations}) == accused


def test_what_was_not_compared_is_not_said_to_hold(tmp_path: Path) -> None:
    script = good()
    lend(script)
    recorded(guest_ram=UNTOLD, pci=UNTOLD)(script)
    script.write_folder(tmp_path)
    assert not {"EQ-7", "EQ-8"} & check_path(tmp_path).exercised.invariants.keys()


@given(st.permutations(range(8)), st.integers(0, 8), st.lists(st.integers(0, 7), max_size=3))
def test_a_set_of_indexes_knows_what_came_and_what_is_missing(
    order: list[int], count: int, again: list[int]
) -> None:
    facts = Facts(0)
    room = facts.waiting_room
    indexes, plain = IndexSet(facts), set[int]()
    for number in [*order[:count], *again]:
        assert indexes.add(number) == (number not in plain)
        plain.add(number)
        missing = set(range(max(plain))) - plain
        assert indexes.gap == (min(missing) if missing else None)
        lowest = min(set(range(9)) - plain)
        assert room - facts.waiting_room == sum(one > lowest for one in plain)


def test_sets_that_wait_for_too_much_are_given_up_and_give_their_room_back() -> None:
    facts = Facts(0)
    facts.waiting_room = 2
    indexes, other = IndexSet(facts), IndexSet(facts)
    assert indexes.add(2)
    assert indexes.add(4)
    assert not indexes.overflowed
    assert not indexes.add(4)
    assert other.add(1)
    assert other.overflowed
    assert facts.waiting_room == 0
    assert other.add(1)  # it says of nothing that it came twice
    assert other.gap is None
    assert not indexes.overflowed
    assert indexes.add(0)
    assert indexes.add(1)
    assert facts.waiting_room == 1
    assert indexes.gap == 3


def test_a_name_that_is_padded_wrongly_is_told_of_once() -> None:
    script = good()
    for label in ("vf1.0", "vf1.1"):
        device_field(script, label, "idstr", (NAME + b"\0X").ljust(256, b"\0"))
    for label in ("ram0", "ram1"):
        ram_field(script, label, "ramblock", b"pc.ram\0X")
    found = [violation.id for violation in judge(script).violations]
    assert found.count("DS-2") == found.count("MP-6") == 1


def test_a_state_that_breaks_off_being_records_is_told_of_once() -> None:
    script = good(journals=False)
    for idx, other in ((0, 1), (1, 0)):
        script.find(f"vf0.{idx}").data = packet(0, idx, buffer(0, other))
    found = [violation for violation in judge(script).violations if violation.id == "DS-15"]
    (witness,) = found[0].witnesses
    assert len(found) == 1
    assert witness.flow.startswith("channel 0")  # the first of the two


def test_a_target_that_may_wait_for_the_description_is_not_known_to_have_it() -> None:
    script = good(journals=False)
    script.drop("shut")
    assert "EN-1" not in {unknown.id for unknown in judge(script).unknown}
    script.find("eof").data = bytes((Tag.EOF,))
    assert "EN-1" in {unknown.id for unknown in judge(script).unknown}
    POSTCOPY(script)
    assert "EN-1" not in {unknown.id for unknown in judge(script).unknown}


FIELDS = [{"name": "x", "size": 4, "array_len": 3}, {"name": "y", "size": 2}]
NESTED = {"vmsd_name": "a/sub", "fields": [{"name": "z", "size": 8}]}


@pytest.mark.parametrize(
    ("entry", "size"),
    [
        ({"size": 7}, 7),  # without a VMStateDescription
        ({"vmsd_name": "a"}, 0),
        ({"vmsd_name": "a", "fields": FIELDS}, 14),
        ({"vmsd_name": "a", "fields": FIELDS, "subsections": [NESTED]}, 14 + 1 + 1 + len("a/sub") + 4 + 8),
        ({"vmsd_name": "a", "fields": [{"name": "x"}]}, None),
        ({"vmsd_name": "a", "fields": [{"size": 1, "array_len": "many"}]}, None),
        ({"vmsd_name": "a", "subsections": [{"fields": FIELDS}]}, None),  # its name takes room, too
        ({"vmsd_name": "a", "subsections": [{"vmsd_name": "b", "fields": [{"name": "x"}]}]}, None),
    ],
)
def test_how_long_a_device_is_by_its_description(entry: dict[str, object], size: int | None) -> None:
    assert described_devices({"devices": [entry | {"name": "a"}]}) == [("a", size)]


def test_when_a_vm_runs_is_not_asked_in_postcopy() -> None:
    script = good()
    assert "SM-10" in judge(script, lines=True).exercised.invariants
    POSTCOPY(script)
    assert "SM-10" not in judge(script, lines=True).exercised.invariants


def test_what_waits_for_too_long_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts_module, "WAITING_MAX", 0)
    script = good()
    script.swap("vf0.0", "vf0.2")
    script.swap("ram0", "sync0.1")
    report = judge(script)
    assert {unknown.id for unknown in report.unknown} == {"DS-5", "DS-10", "MP-12"}
