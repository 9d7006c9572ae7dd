# SPDX-License-Identifier: GPL-2.0-or-later
"""The decoder sees the same whatever the segments, and accounts for every byte whatever is missing."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from mockdev.wire import writer
from mockdev.wire.frames import DeviceStateFrame, RamFrame
from mockdev.wire.structs import MULTIFD_RAM, MultifdFlag, Tag
from tests.canaries.script import BUFFER, MAIN, UUID, good, packet, pages
from tests.examples import examples
from verifier.capture.flows import Directory, Role
from verifier.capture.packets import Address
from verifier.capture.stream import Flow
from verifier.history.decode import FlowDecoder
from verifier.history.held import Held
from verifier.history.image import Image, Room
from verifier.history.inflate import PageStream
from verifier.history.observation import Answered, Broken, BufferDone, FlowEnd, Hole, PagesDone, Seen


@dataclass
class Watched:
    """A decoder over one stream, and all that it told."""

    decoder: FlowDecoder
    seen: list[Seen] = field(default_factory=list)
    images: dict[str, Image] = field(default_factory=dict)

    def events(self, *kinds: type) -> list[object]:
        """What it saw of these kinds; of all without any."""
        return [s.event for s in self.seen if not kinds or isinstance(s.event, kinds)]


def watch(data: bytes, *, initiator: bool = True, midway: bool = False) -> Watched:
    """A decoder of `data`, not fed yet."""
    flow = Flow(0, 0, Address("10.0.0.1", 1), Address("10.0.0.2", 2), initiator, midway)
    directory = Directory()
    view, room = memoryview(data), Room()
    seen: list[Seen] = []
    images: dict[str, Image] = {}
    decoder = FlowDecoder(
        directory.meet(flow),
        directory,
        data,
        view,
        seen.append,
        lambda _, device: images.setdefault(device, Image(view, room)),
    )
    return Watched(decoder, seen, images)


def feed(data: bytes, cuts: Sequence[int] = (), **how: bool) -> Watched:
    """Decode `data`, cut into segments at these places."""
    watched = watch(data, **how)
    at = 0
    for cut in [*sorted(set(cuts)), len(data)]:
        if at < cut <= len(data):
            watched.decoder.data(at, cut, at)
            at = cut
    watched.decoder.end("fin", len(data))
    return watched


def stream(where: str) -> bytes:
    """One stream of the good migration."""
    return b"".join(p.data for p in good(journals=False).pieces if p.where == where)


MAIN_STREAM, CHANNEL_STREAM = stream(MAIN), stream("0")
DEVICE_STREAM = writer.init_packet(0, UUID) + packet(0, 0, bytes(range(200))) + packet(0, 1, b"xyz")


@settings(max_examples=examples(60))
@given(st.lists(st.integers(1, len(MAIN_STREAM) - 1), max_size=30))
def test_segments_of_the_main_channel_do_not_matter(cuts: list[int]) -> None:
    whole, cut = feed(MAIN_STREAM), feed(MAIN_STREAM, cuts)
    assert cut.events() == whole.events()
    assert cut.decoder.decoded == len(MAIN_STREAM)


@settings(max_examples=examples(60))
@given(st.lists(st.integers(1, len(CHANNEL_STREAM) - 1), max_size=30))
def test_segments_of_a_channel_do_not_matter(cuts: list[int]) -> None:
    whole, cut = feed(CHANNEL_STREAM), feed(CHANNEL_STREAM, cuts)
    assert cut.events() == whole.events()
    assert {n: i.digest() for n, i in cut.images.items()} == {n: i.digest() for n, i in whole.images.items()}


def test_byte_by_byte_is_the_same() -> None:
    for data in (MAIN_STREAM, CHANNEL_STREAM[:6000]):
        assert feed(data, range(1, len(data))).events() == feed(data).events()


@settings(max_examples=examples(80))
@given(st.integers(0, len(DEVICE_STREAM)), st.integers(1, 300), st.lists(st.integers(1, 800), max_size=8))
def test_every_byte_is_accounted_for_with_a_hole_anywhere(start: int, size: int, cuts: list[int]) -> None:
    stop = min(start + size, len(DEVICE_STREAM))
    watched = watch(DEVICE_STREAM)
    at = 0
    for cut in sorted({*cuts, start, stop, len(DEVICE_STREAM)}):
        if at < cut <= len(DEVICE_STREAM):
            if (at, cut) == (at, min(cut, stop)) and start <= at < stop:
                watched.decoder.hole(cut - at, "lost", at, "")
            else:
                watched.decoder.data(at, cut, at)
            at = cut
    watched.decoder.end("fin", at)
    decoder = watched.decoder
    assert decoder.decoded + decoder.lost + decoder.undecodable == len(DEVICE_STREAM)
    assert decoder.lost == stop - start


def test_a_hole_inside_a_payload_costs_only_the_digest() -> None:
    start = 64 + 288 + 10
    watched = watch(DEVICE_STREAM)
    watched.decoder.data(0, start, 0)
    watched.decoder.hole(50, "snapped", 1, "vfmig payload 50 xxh3-128:00")
    watched.decoder.data(start + 50, len(DEVICE_STREAM), 2)
    watched.decoder.end("fin", 3)
    (hole,) = watched.events(Hole)
    assert hole == Hole(start, 50, "snapped", True)
    assert [(b.idx, b.whole) for b in watched.events(BufferDone)] == [(0, False), (1, True)]  # type: ignore[attr-defined]
    (image,) = watched.images.values()
    assert image.digest() is None
    assert "not in the capture" in image.problem
    assert watched.events(FlowEnd) == [FlowEnd(len(DEVICE_STREAM), 0, "fin", "")]


def test_a_hole_in_a_header_ends_the_reading_and_says_where() -> None:
    watched = watch(DEVICE_STREAM)
    watched.decoder.data(0, 100, 0)
    watched.decoder.hole(5, "lost", 1, "")
    watched.decoder.data(105, len(DEVICE_STREAM), 2)
    watched.decoder.end("fin", 3)
    assert "at offset 100" in watched.decoder.why
    assert watched.decoder.undecodable == len(DEVICE_STREAM) - 105 + (100 - 64 - 12)
    assert not watched.events(Broken, DeviceStateFrame)


def test_a_hole_that_reaches_beyond_its_payload_ends_the_reading() -> None:
    watched = watch(DEVICE_STREAM)
    watched.decoder.data(0, 64 + 288 + 190, 0)
    watched.decoder.hole(20, "lost", 1, "")
    watched.decoder.data(64 + 288 + 210, len(DEVICE_STREAM), 2)
    watched.decoder.end("fin", 3)
    decoder = watched.decoder
    assert decoder.why
    assert decoder.decoded + decoder.lost + decoder.undecodable == len(DEVICE_STREAM)


def test_a_stream_cut_in_a_packet_says_in_what() -> None:
    cut = feed(DEVICE_STREAM[:-1])
    (end,) = cut.events(FlowEnd)
    assert isinstance(end, FlowEnd)
    assert (end.inside, end.offset) == ("payload", len(DEVICE_STREAM) - 1)
    head = feed(DEVICE_STREAM[:70])
    assert head.events(FlowEnd) == [FlowEnd(70, 0, "fin", "multifd packet header")]
    assert head.decoder.undecodable == 6


def test_refused_bytes_are_told_with_place_and_field() -> None:
    bad = writer.init_packet(0, UUID) + b"\0\0\0\1" * 3
    watched = feed(bad)
    (broken,) = watched.events(Broken)
    assert isinstance(broken, Broken)
    assert (broken.offset, broken.error.field) == (64, "magic")
    assert watched.decoder.decoded + watched.decoder.undecodable == len(bad)


def test_another_protocol_and_a_stream_joined_midway_are_told_apart() -> None:
    web = feed(b"GET / HTTP/1.1")
    assert web.decoder.lane.role is Role.NONE
    assert web.decoder.lane.foreign
    assert "47 45 54 20" in web.decoder.why
    midway = feed(DEVICE_STREAM, midway=True)
    assert "joined midway" in midway.decoder.why
    assert not midway.decoder.lane.foreign


def test_an_answer_on_a_channel_is_told_and_not_read() -> None:
    data = DEVICE_STREAM + b"hello"
    directory = Directory()
    ends = Address("10.0.0.1", 1), Address("10.0.0.2", 2)
    seen: list[Seen] = []
    view = memoryview(data)

    def image(_: object, __: str) -> Image:
        return Image(view, Room())

    lanes = [directory.meet(Flow(0, 0, *pair, pair is ends, False)) for pair in (ends, ends[::-1])]
    there, back = (FlowDecoder(lane, directory, data, view, seen.append, image) for lane in lanes)
    back.data(len(DEVICE_STREAM), len(data), 0)  # before it is known what the connection is
    there.data(0, len(DEVICE_STREAM), 1)
    there.end("fin", 2)
    back.end("fin", 2)
    assert [s.event for s in seen if isinstance(s.event, Answered)] == [Answered(0, 5)]
    assert back.undecodable == 5


def test_a_return_path_seen_before_the_main_channel_is_read() -> None:
    back_bytes = writer.pong(b"\0\0\0\1")
    data = MAIN_STREAM + back_bytes
    directory = Directory()
    ends = Address("10.0.0.1", 1), Address("10.0.0.2", 2)
    seen: list[Seen] = []
    view = memoryview(data)
    lanes = [directory.meet(Flow(0, 0, *pair, pair is ends, False)) for pair in (ends, ends[::-1])]
    main, back = (
        FlowDecoder(lane, directory, data, view, seen.append, lambda *_: Image(view, Room()))
        for lane in lanes
    )
    back.data(len(MAIN_STREAM), len(data), 0)
    main.data(0, len(MAIN_STREAM), 1)
    back.end("fin", 2)
    assert back.lane.role is Role.RETURN_PATH
    assert back.decoded == len(back_bytes)


def test_a_long_section_does_not_cost_its_square() -> None:
    # In segments of 1 KiB, looking at all of it for each would read half a gigabyte.
    head = writer.stream_header() + writer.configuration("pc-q35-10.0")
    blob = bytes(1 << 20)
    section = writer.section_head(Tag.SECTION_FULL, 7, "blob", 0, 1) + blob + writer.section_footer(7)
    data = head + section + writer.end_of_stream([writer.opaque_description("blob", 0, len(blob))])
    looked = 0

    class Counting(Held):
        __slots__ = ()

        def peek(self, size: int) -> bytes:
            nonlocal looked
            found = super().peek(size)
            looked += len(found)
            return found

    decoder = watch(data).decoder
    decoder._held = Counting(data)
    for at in range(0, len(data), 1024):
        decoder.data(at, min(at + 1024, len(data)), at)
    decoder.end("fin", 1)
    assert decoder.decoded == len(data)
    assert len(data) < looked < 16 * len(data)


def compressed(packet_num: int, numbers: tuple[int, ...], data: bytes) -> bytes:
    """A RAM packet whose page data is compressed already."""
    head = bytearray(writer.ram_packet(packet_num, "pc.ram", [4096 * n for n in numbers], []))
    for name, value in (("flags", int(MultifdFlag.ZLIB)), ("next_packet_size", len(data))):
        place = MULTIFD_RAM.place(name)
        head[place.offset : place.offset + place.size] = value.to_bytes(place.size, "big")
    return bytes(head) + data


def test_zlib_pages_are_inflated_in_one_running_stream() -> None:
    running = zlib.compressobj()
    parts = []
    for numbers in ((0, 1), (2,)):
        parts.append(running.compress(pages(*numbers)) + running.flush(zlib.Z_SYNC_FLUSH))
    data = writer.init_packet(0, UUID) + compressed(0, (0, 1), parts[0]) + compressed(1, (2,), parts[1])
    watched = feed(data, range(1, len(data), 700))
    assert [(p.got, p.problem) for p in watched.events(PagesDone)] == [(8192, ""), (4096, "")]  # type: ignore[attr-defined]
    assert len(watched.events(RamFrame)) == 2


def test_pages_after_a_hole_in_compressed_data_are_unknown_not_wrong() -> None:
    running = zlib.compressobj()
    first = running.compress(pages(0)) + running.flush(zlib.Z_SYNC_FLUSH)
    second = running.compress(pages(1)) + running.flush(zlib.Z_SYNC_FLUSH)
    data = writer.init_packet(0, UUID) + compressed(0, (0,), first) + compressed(1, (1,), second)
    at = 64 + 1344 + 3
    watched = watch(data)
    watched.decoder.data(0, at, 0)
    watched.decoder.hole(4, "snapped", 0, "")
    watched.decoder.data(at + 4, len(data), 0)
    watched.decoder.end("fin", 0)
    assert [(p.got, p.problem) for p in watched.events(PagesDone)] == [(-1, ""), (-1, "")]  # type: ignore[attr-defined]


def test_a_bomb_is_stopped_at_what_the_pages_take() -> None:
    bomb = zlib.compress(bytes(64 << 20), 9)
    got, problem = PageStream(MultifdFlag.ZLIB).inflate([memoryview(bomb)], 4096)
    assert got < 1 << 18
    assert "more comes out" in problem


def test_zstd_pages_and_rubbish() -> None:
    import zstandard

    packer = zstandard.ZstdCompressor().compressobj()
    data = packer.compress(pages(1, 2)) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    assert PageStream(MultifdFlag.ZSTD).inflate([memoryview(data)], 8192) == (8192, "")
    assert (
        PageStream(MultifdFlag.ZSTD).inflate([memoryview(data)], 12288)[1] == "8192 bytes come out, not 12288"
    )
    assert "cannot be inflated" in PageStream(MultifdFlag.ZSTD).inflate([memoryview(b"rubbish!")], 4096)[1]
    assert not PageStream(MultifdFlag.QPL).readable


def test_sizes_used_here_are_the_scripts() -> None:
    assert BUFFER == 40
