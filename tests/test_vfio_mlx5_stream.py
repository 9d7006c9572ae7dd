# SPDX-License-Identifier: GPL-2.0-or-later
"""The record stream: what is built, what the reading machine makes of it, and its quirks one by one."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mockdev.errors import DeviceError
from mockdev.vfio.mlx5_stream import LoadState, ResumeMachine, image_header, stop_copy_size_record

Events = list[bytes | int]


def record(tag: int, payload: bytes, flags: int = 0) -> bytes:
    return struct.pack("<QII", len(payload), flags, tag) + payload


def run(machine: ResumeMachine, *writes: bytes) -> Events:
    """Images as bytes joined up to their LOAD, and the size of each LOAD."""
    events: Events = []
    image = b""
    for data in writes:
        view = memoryview(data)
        while view or machine.work:
            step = machine.step(view)
            view = view[step.consumed :]
            if step.image is not None:
                image += bytes(step.image)
            if step.load is not None:
                events += [image, step.load]
                image = b""
    return events


def refused(stream: bytes) -> int:
    with pytest.raises(DeviceError) as caught:
        run(ResumeMachine(), stream)
    return caught.value.errno


def test_what_is_built_is_the_drivers_layout() -> None:
    assert image_header(0x1234) == record(0, b"")[:0] + struct.pack("<QII", 0x1234, 0, 0)
    assert stop_copy_size_record(8 << 20) == record(1, struct.pack("<Q", 8 << 20), flags=1)
    assert len(stop_copy_size_record(0)) == 24


def test_one_load_per_record_in_order() -> None:
    machine = ResumeMachine()
    events = run(machine, stop_copy_size_record(4096) + record(0, b"abc") + record(0, b"defgh"))
    assert events == [b"abc", 3, b"defgh", 5]
    assert machine.prep_size == 4096
    assert machine.records == 2
    assert not machine.inside_record


RECORDS = st.one_of(
    st.binary(min_size=1, max_size=40).map(lambda payload: record(0, payload)),
    st.binary(min_size=1, max_size=40).map(lambda payload: record(1, payload)),
    st.tuples(st.integers(2, 2**32 - 1), st.binary(max_size=40)).map(lambda t: record(t[0], t[1], flags=1)),
    st.tuples(st.integers(0, 1), st.integers(0, 2**32 - 1), st.binary(min_size=1, max_size=9)).map(
        lambda t: record(t[0], t[2], flags=t[1])
    ),
)


@given(st.lists(RECORDS, max_size=6), st.data())
def test_any_split_gives_the_same(records: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(records) + record(0, b"end")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    whole, split, single = ResumeMachine(), ResumeMachine(), ResumeMachine()
    expected = run(whole, stream)
    assert run(split, *pieces) == expected
    assert run(single, *(stream[i : i + 1] for i in range(len(stream)))) == expected
    assert whole.prep_size == split.prep_size == single.prep_size
    assert whole.buffer_size == split.buffer_size == single.buffer_size


def test_too_large_a_record_is_refused_before_its_payload() -> None:
    assert refused(struct.pack("<QII", 2**32, 0, 0)) == errno.ENOMEM
    assert refused(struct.pack("<QII", 2**32, 1, 77)) == errno.ENOMEM
    machine = ResumeMachine()
    assert run(machine, struct.pack("<QII", 2**32 - 1, 0, 0)) == []


def test_an_unknown_mandatory_tag_is_refused_and_an_optional_one_skipped() -> None:
    assert refused(record(2, b"x")) == errno.EOPNOTSUPP
    assert refused(record(2, b"x", flags=0xFFFFFFFE)) == errno.EOPNOTSUPP
    assert run(ResumeMachine(), record(2, b"x" * 100, flags=1) + record(0, b"ab")) == [b"ab", 2]


def test_flags_of_known_tags_are_not_looked_at() -> None:
    assert run(ResumeMachine(), record(0, b"ab", flags=0xFFFFFFFF)) == [b"ab", 2]
    machine = ResumeMachine()
    run(machine, record(1, struct.pack("<Q", 99), flags=0))
    assert machine.prep_size == 99


def test_the_size_record_may_come_again_anywhere_or_never() -> None:
    size = stop_copy_size_record(512)
    assert run(ResumeMachine(), record(0, b"a") + size + size + record(0, b"b")) == [b"a", 1, b"b", 1]


def test_the_size_record_may_be_longer_or_shorter_than_its_field() -> None:
    machine = ResumeMachine()
    run(machine, record(1, struct.pack("<Q", 77) + b"rest" * 9))
    assert machine.prep_size == 77
    run(machine, record(1, b"\x05\x01"))  # the missing bytes are those of the header before it
    assert machine.prep_size == 0x0105


def test_the_told_size_is_clamped_and_counts_for_the_next_image_only() -> None:
    machine = ResumeMachine()
    run(machine, record(1, struct.pack("<Q", 2**63)))
    assert (machine.prep_size, machine.buffer_size) == (2**32 - 1, 0)
    run(machine, record(0, b"a"))
    assert machine.buffer_size == 2**32 - 1


def test_an_empty_record_ends_with_the_next_input() -> None:
    machine = ResumeMachine()
    run(machine, record(9, b"", flags=1))
    assert machine.state is LoadState.READ_HEADER_DATA
    assert run(machine, record(0, b"a")) == [b"a", 1]


def test_an_empty_image_loads_only_into_a_buffer_that_exists() -> None:
    assert refused(record(0, b"") + b"x") == errno.EINVAL
    assert run(ResumeMachine(), record(0, b"a") + record(0, b"") + b"x") == [b"a", 1, b"", 0]
    assert run(ResumeMachine(), stop_copy_size_record(1) + record(0, b"") + b"x") == [b"", 0]


@pytest.mark.parametrize("cut", [0, 1, 15, 16, 20, 24, 39, 40, 41, 42])
def test_a_cut_stream_raises_nothing_but_can_be_asked(cut: int) -> None:
    stream = stop_copy_size_record(4096) + record(0, b"abc")
    machine = ResumeMachine()
    run(machine, stream[:cut])
    assert machine.inside_record is (cut not in (0, 24, len(stream)))
