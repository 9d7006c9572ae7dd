# SPDX-License-Identifier: GPL-2.0-or-later
"""Hypothesis strategies for everything that is drawn here; needs `pip install 'vfmig[hypothesis]'`.

from hypothesis import given
from verifier.fuzz.strategies import scenes
from verifier.simulation.migration import simulate

@given(scenes())
def test_mine(scene):
    assert not simulate(scene, Parts(target=MyTarget)).report.violations
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec
from hypothesis import strategies as st

from mockdev.device.faults import Faults, device_faults
from mockdev.device.image import PAGE_SIZE
from mockdev.device.profile import Profile
from mockdev.device.saving import Plan
from mockdev.faultspec import FAULTS, Ends, Fault, FaultSpecError, parse_all
from mockdev.runtime.config import MigrationConfig
from mockdev.vfio.uapi import State
from mockdev.wire import writer
from mockdev.wire.layout import FieldPlace, Layout
from mockdev.wire.structs import (
    MULTIFD_DEVICE_STATE,
    MULTIFD_INIT,
    MULTIFD_RAM,
    VFIO_DEVICE_STATE,
    Command,
    RamFlag,
    Tag,
    VfioTag,
)
from verifier.simulation.link import LinkModel
from verifier.simulation.scene import FREE, LINKS, UUID, Break, Cancel, Scene

_US = 1_000
_PLAIN = LinkModel()

# -- configurations and scenes -----------------------------------------------------------------------------


@st.composite
def configurations(draw: st.DrawFn, vfs_max: int = 4, channels_max: int = 5) -> MigrationConfig:
    """Small migrations without faults, as a simulation can play them. A device has a few buffers."""
    vfs, channels = draw(st.integers(1, vfs_max)), draw(st.integers(1, channels_max))
    buffer_bytes = draw(st.integers(32, 300))
    state_bytes = max(2, draw(st.integers(1, 8)) * buffer_bytes - draw(st.integers(0, buffer_bytes - 1)))
    precopy_bytes = draw(st.just(0) | st.just(0) | st.integers(1, state_bytes - 1))
    return MigrationConfig(
        vfs=vfs,
        channels=channels,
        state_bytes=state_bytes,
        buffer_bytes=buffer_bytes,
        chunk_bytes=draw(st.integers(16, 3 * buffer_bytes)),
        precopy_bytes=precopy_bytes,
        switchover_ack=bool(precopy_bytes) and draw(st.booleans()),
        transfer=draw(st.sampled_from(("multifd", "multifd", "multifd", "main"))),
        dialect=draw(st.sampled_from(("10.0", "11.1"))),
        zero_pages=draw(st.sampled_from(("multifd", "legacy", "none"))),
        ram_bytes=PAGE_SIZE * draw(st.integers(1, 4)),
        load_threads=draw(st.none() | st.integers(1, vfs)),
        in_flight_max=draw(st.none() | st.integers(1, channels)),
        uuid=UUID,
    )


def links(kinds: Collection[str] = LINKS) -> st.SearchStrategy[LinkModel]:
    """Ways in which a direction of a connection behaves, with these kinds of trouble; the plain one first."""

    def of(kind: str, plain: Any, drawn: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.just(plain) | drawn if kind in kinds else st.just(plain)

    return st.builds(
        LinkModel,
        delay_ns=of("late", 0, st.integers(1, 1_000_000)),
        jitter_ns=of("late", 0, st.integers(1, 3_000_000)),
        byte_ns=of("slow", 0.0, st.sampled_from((1.0, 400.0))),
        window=of("window", _PLAIN.window, st.integers(1, 4096)),
        parts=of("parts", 1, st.integers(2, 4)),
        stall_at=of("stall", 0, st.integers(0, 12_000)),
        stall_ns=of("stall", 0, st.integers(1, 400_000_000)),
    )


def schedules(choices_max: int = 60) -> st.SearchStrategy[tuple[int, ...]]:
    """Lists of choices for simulation/schedule.py; shrinks to the first task each time."""
    return st.lists(st.integers(0, 8), max_size=choices_max).map(tuple)


@st.composite
def scenes(draw: st.DrawFn, *, troubled: bool = True) -> Scene:
    """Whole simulated migrations. troubled: also those that something may rightly end: one thing at most, and
    half of them nothing, or few would be played to their end.
    """
    config = draw(configurations())
    slow = draw(st.just(()) | _disturbances(config))
    scene = Scene(
        seed=draw(st.integers(0, 1000)),
        migration=msgspec.structs.replace(config, faults=slow),
        kinds=frozenset(draw(st.sets(st.sampled_from(("ranked", "yields"))))),
        profile=draw(st.just(FREE) | profiles()),
        initial_bytes=draw(st.integers(1, max(1, config.precopy_bytes))),
        increment_bytes=draw(st.integers(max(1, config.precopy_bytes // 5), max(1, config.precopy_bytes))),
        links=draw(_all_links(config.channels)),
        schedule=draw(schedules() | st.none() | st.none()),  # the first task each time is plainer than a seed
    )
    pages = st.integers(0, config.ram_bytes // PAGE_SIZE - 1)
    writes = st.lists(st.tuples(pages, st.integers(0, 40)), max_size=6)
    scene = replace(scene, guest_writes=tuple(draw(writes)))
    match draw(st.sampled_from(("", "", "", "fault", "cap", "break", "cancel"))) if troubled else "":
        case "fault":
            fault = draw(_device_faults(config))
            scene = replace(scene, migration=msgspec.structs.replace(config, faults=fault))
        case "cap":
            cap = draw(st.integers(4_400, 8_000))
            scene = replace(scene, migration=msgspec.structs.replace(scene.migration, queue_cap_bytes=cap))
        case "break":
            channel = draw(st.integers(-1, config.channels - 1))
            scene = replace(scene, breaks=Break(channel, draw(st.integers(0, 20_000)), draw(st.booleans())))
        case "cancel":
            role = draw(st.sampled_from(("source", "target")))
            scene = replace(scene, cancel=Cancel(role, draw(st.integers(0, 300))))
    return scene


@st.composite
def _all_links(draw: st.DrawFn, channels: int) -> tuple[LinkModel, ...]:
    """Of all connections. Few kinds of trouble at a time, for one hides the other: where everything waits for
    one late connection, no buffer is loaded before another. Or one of them is far later than the others.
    """
    count = 2 + 2 * channels
    kinds = draw(st.sets(st.sampled_from(LINKS), max_size=2))
    models = draw(st.lists(links(kinds), min_size=count, max_size=count)) if kinds else [_PLAIN] * count
    if draw(st.integers(0, 3)) == 1:
        late = 2 * draw(st.integers(0, channels))
        jitter_ns = draw(st.integers(1, 400)) * 1_000_000
        models = [*models[:late], replace(models[late], jitter_ns=jitter_ns), *models[late + 1 :]]
    return () if models == [_PLAIN] * count else tuple(models)


def _disturbances(config: MigrationConfig) -> st.SearchStrategy[tuple[str, ...]]:
    """What makes a device slow, or its reads short, and ends nothing."""
    byte, vf, us = (
        st.integers(0, config.state_bytes - 1),
        st.integers(0, config.vfs - 1),
        st.integers(0, 5000),
    )
    texts = st.one_of(
        st.builds("source.vf{}.save:short={}".format, vf, st.integers(1, 60)),
        st.builds("source.vf{}.save:stall={}us@{}".format, vf, us, byte),
        st.builds("target.vf{}.load:stall={}us@{}".format, vf, us, byte),
    )
    return texts.map(lambda text: (text,))


def _device_faults(config: MigrationConfig) -> st.SearchStrategy[tuple[str, ...]]:
    """One that ends it. Without an end or a length that never comes, for which a simulation has no clock."""
    byte, vf = st.integers(0, config.state_bytes - 1), st.integers(0, config.vfs - 1)
    texts = st.one_of(
        st.builds("source.vf{}.save:{}@{}".format, vf, st.sampled_from(("eio", "fail")), byte),
        st.builds("target.vf{}.load:eio@{}".format, vf, byte),
        st.builds("source.vf{}.arc.STOP_COPY:eio".format, vf),
        st.builds("target.vf{}.arc.{}:eio".format, vf, st.sampled_from(("RESUMING", "RUNNING_P2P"))),
        st.builds("target.vf{}.config:eio".format, vf),
    )
    return texts.map(lambda text: (text,))


# -- devices -----------------------------------------------------------------------------------------------


def profiles() -> st.SearchStrategy[Profile]:
    """What device commands cost: nothing, or up to half a millisecond each."""
    cost = st.integers(0, 500).map(lambda us: us * _US)
    return st.builds(
        Profile,
        st.just("drawn"),
        records=st.just(True),
        save_fixed_ns=cost,
        load_fixed_ns=cost,
        gamma=st.sampled_from((0.0, 0.5, 1.0)),
        eta=st.sampled_from((0.0, 0.5)),
        suspend_initiator_ns=cost,
        suspend_responder_ns=cost,
        resume_responder_ns=cost,
        resume_initiator_ns=cost,
        query_ns=cost,
        reset_ns=cost,
        config_per_function_ns=cost,
    )


def plans(state_bytes: int) -> st.SearchStrategy[Plan]:
    """How a state of that size is cut."""
    size = st.integers(1, state_bytes)
    return st.builds(Plan, st.just(0) | st.integers(1, max(1, state_bytes - 1)), size, size, size)


_VALUES = {
    "ERRNO": st.sampled_from(("eio", "enomem", "enodev", "emfile")),
    "TIME": st.integers(0, 5000).map("{}us".format),
    "SIZE": st.integers(1, 1000).map(str),
    "BIT": st.integers(0, 4096).map(str),
    "STATE": st.sampled_from([state.name for state in State if state is not State.ERROR]),
}
_INDEXES = ("PACKET", "MESSAGE", "BUFFER", "RECORD", "ITEM")


@st.composite
def fault_texts(draw: st.DrawFn, vfs: int = 4, channels: int = 4, faults: tuple[Fault, ...] = FAULTS) -> str:
    """Faults as `--fault` takes them, of every line of the table."""
    fault = draw(st.sampled_from(faults))
    where = fault.where.replace("vfN", f"vf{draw(st.integers(0, vfs - 1))}")
    where = where.replace("channel.N", f"channel.{draw(st.integers(0, channels - 1))}")
    text = f"{where}:{fault.what}"
    ends = {Ends.ONE: ("source.", "target."), Ends.ANY: ("source.", "target.", ""), Ends.NEITHER: ("",)}
    text = draw(st.sampled_from(ends[fault.ends])) + text
    when = draw(st.sampled_from(("", *fault.whens)))
    if when:
        text += f"@{when}"
    for word in _INDEXES:
        text = text.replace(f"#{word}", f"#{draw(st.integers(0, 20))}")
    for word, values in _VALUES.items():
        while word in text:
            text = text.replace(word, draw(values), 1)
    return text


def faults() -> st.SearchStrategy[Faults]:
    """What goes wrong with one device, up to three things of the table."""
    of_devices = tuple(fault for fault in FAULTS if fault.where.startswith("vfN"))
    texts = fault_texts(vfs=1, faults=of_devices).map(lambda text: text.replace("target.", "source."))
    lists = st.lists(texts, max_size=3).filter(_together)
    return lists.map(lambda many: device_faults(parse_all(many, 1, 1), "source", 0))


def _together(texts: list[str]) -> bool:
    try:
        parse_all(texts, 1, 1)
    except FaultSpecError:
        return False
    return True


# -- byte streams ------------------------------------------------------------------------------------------


class Packet(NamedTuple):
    """One packet or item of a stream. heads: the structs that it begins with, in their order."""

    heads: tuple[Layout[Any], ...]
    data: bytes


Stream = list[Packet]


@st.composite
def channel_streams(draw: st.DrawFn, packets_max: int = 8) -> Stream:
    """What a multifd connection legally carries from the source: init, SYNC, then anything in any order."""
    number = draw(st.integers(0, 3))
    sync = Packet((MULTIFD_RAM,), writer.sync_packet(0))
    stream = [Packet((MULTIFD_INIT,), writer.init_packet(number, bytes(range(16)))), sync]
    idx = 0
    for at, kind in enumerate(draw(st.lists(st.sampled_from("dsr"), max_size=packets_max)), 1):
        if kind == "s":
            stream.append(Packet((MULTIFD_RAM,), writer.sync_packet(at)))
        elif kind == "r":
            normal = draw(st.lists(st.integers(0, 50), max_size=2, unique=True))
            head = writer.ram_packet(at, "pc.ram", [4096 * page for page in normal], [4096 * 60])
            stream.append(Packet((MULTIFD_RAM,), head + bytes(4096 * len(normal))))
        else:
            size = draw(st.integers(0, 400))
            head = writer.device_state_packet("0000:00:02.0/vfio", 0, idx, size)
            stream.append(Packet((MULTIFD_DEVICE_STATE, VFIO_DEVICE_STATE), head + bytes(size)))
            idx += 1
    return stream


@st.composite
def main_streams(draw: st.DrawFn) -> Stream:
    """What the main channel legally carries, with up to two devices on it and RAM over multifd."""
    names = [f"0000:00:{2 + number:02x}.0/vfio" for number in range(draw(st.integers(0, 2)))]
    end, eos = writer.vfio_tag(VfioTag.END_OF_STATE), writer.ram_mark(RamFlag.EOS)

    def section(tag: Tag, number: int, *payload: bytes, name: str = "", version: int = 1) -> bytes:
        head = writer.section_head(tag, number, name, 0, version)
        return b"".join((head, *payload, writer.section_footer(number)))

    items = [writer.stream_header(), writer.configuration("pc-i440fx-10.0")]
    if draw(st.booleans()):
        items += [writer.command(Command.OPEN_RETURN_PATH), writer.ping(1)]
    blocks = writer.ram_blocks([("pc.ram", 1 << 20)])
    items.append(section(Tag.SECTION_START, 2, blocks, eos, name="ram", version=4))
    setup = writer.vfio_tag(VfioTag.DEV_SETUP_STATE)
    items += [section(Tag.SECTION_START, 3 + n, setup, end, name=name) for n, name in enumerate(names)]
    items += [section(Tag.SECTION_PART, 2, eos)] * draw(st.integers(0, 2))
    for number in draw(st.lists(st.integers(0, len(names) - 1), max_size=3)) if names else []:
        size = draw(st.integers(1, 100))
        items.append(section(Tag.SECTION_PART, 3 + number, writer.vfio_data(size), bytes(size), end))
    items += [writer.command(Command.SWITCHOVER_START), section(Tag.SECTION_END, 2, eos)]
    items += [section(Tag.SECTION_END, 3 + number, end) for number in range(len(names))]
    items += [section(Tag.SECTION_FULL, 3 + n, end, name=name) for n, name in enumerate(names)]
    items.append(section(Tag.SECTION_FULL, 9, writer.globalstate("running"), name="globalstate"))
    described = [writer.opaque_description(name, 0, 8) for name in names]
    items.append(writer.end_of_stream([*described, writer.globalstate_description()]))
    return [Packet((), item) for item in items]


@st.composite
def mutated(draw: st.DrawFn, streams: st.SearchStrategy[Stream]) -> Stream:
    """A stream with one thing wrong or at least changed: its order, a field, a byte, or its end."""
    stream = list(draw(streams))
    at = draw(st.integers(0, len(stream) - 1))
    packet = stream[at]
    how = draw(st.sampled_from(("drop", "double", "swap", "field", "byte", "cut")))
    if how == "drop":
        del stream[at]
    elif how == "double":
        stream.insert(draw(st.integers(0, len(stream))), packet)
    elif how == "swap":
        other = draw(st.integers(0, len(stream) - 1))
        stream[at], stream[other] = stream[other], packet
    elif how == "cut":
        stream[at:] = [packet._replace(data=packet.data[: draw(st.integers(0, len(packet.data) - 1))])]
    elif how == "field" and packet.heads:
        stream[at] = packet._replace(data=draw(changed_fields(packet)))
    else:
        place = draw(st.integers(0, min(len(packet.data), 600) - 1))
        value = draw(st.sampled_from((0, 1, 0x7F, 0x80, 0xFF)))
        stream[at] = packet._replace(data=packet.data[:place] + bytes((value,)) + packet.data[place + 1 :])
    return stream


@st.composite
def changed_fields(draw: st.DrawFn, packet: Packet) -> bytes:
    """The packet's bytes with another value in one field of its heads, at the edges of what it can hold."""
    start = 0
    places: list[tuple[int, FieldPlace]] = []
    for layout in packet.heads:
        places += [(start, place) for place in layout.fields]
        start += layout.size
    base, place = draw(st.sampled_from(places))
    begin, end = base + place.offset, base + place.offset + place.size
    old = packet.data[begin:end]
    number, top = int.from_bytes(old, "big"), (1 << 8 * place.size) - 1
    edges = (0, 1, number + 1, number - 1, number ^ 1, top, top >> 1, (top >> 1) + 1)
    new = draw(st.sampled_from(edges) | st.integers(0, top))
    return packet.data[:begin] + (new & top).to_bytes(place.size, "big") + packet.data[end:]


def joined(stream: Stream) -> bytes:
    """All its bytes."""
    return b"".join(packet.data for packet in stream)
