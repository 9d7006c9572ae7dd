# SPDX-License-Identifier: GPL-2.0-or-later
"""What may follow what is written down twice, for endpoints and for the judge; here the two must agree.

A stream that the endpoints' tables and plans refuse never holds, a legal one holds and is accepted, and one
in which an invariant is violated is refused, but for the invariants of what no table knows.
"""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from mockdev.errors import RemoteProtocolError
from mockdev.multifd.assembly import Buffer
from mockdev.multifd.receiver import LoadPlan
from mockdev.wire.channel import MAIN as MAIN_TABLE
from mockdev.wire.channel import MULTIFD, Course, Event, Phase
from mockdev.wire.framer import multifd_channel
from mockdev.wire.frames import (
    CommandItem,
    DeviceStateFrame,
    Frame,
    Payload,
    SectionItem,
    Syntax,
    Want,
)
from mockdev.wire.mainstream import is_vfio, main_channel
from mockdev.wire.structs import VFIO_DEVICE_STATE_CONFIG, Command, Tag
from tests.canaries.bench_of_one import judge
from tests.canaries.migrations import Shape, build
from tests.canaries.script import BACK, MAIN, Piece, Script
from tests.examples import examples
from verifier.history.observation import text
from verifier.verdict import Standing

DROP, DOUBLE, SWAP, MOVE, CHANGE = "drop", "double", "swap", "move", "change"

# What tables and plans of ours do not know, and the judge alone sees in streams with another order of frames:
# numbers and counts of RAM and SYNC packets, what is in pages, marks between RAM and SYNCs; which section is
# which, and whether each was ended; PINGs and the return path; the order of indices on one connection; what
# lies behind the end; and what comes out when frames are read in another's place.
BEYOND = {
    *("MP-2", "MP-3", "MP-4", "MP-5", "MP-6", "MP-8", "MP-9", "MP-12", "MP-15", "MP-16"),
    *("RS-8", "RS-10", "RS-12", "RS-13"),
    *("FR-5", "FR-6", "FR-10", "FR-11", "FR-13"),
    *("RP-1", "RP-3"),
    *("DS-1", "DS-7", "DS-11"),
    *("EN-1", "EN-3"),
}


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    """Small migrations of all kinds."""
    channels, devices = draw(st.integers(1, 3)), draw(st.integers(0, 3))
    places = st.tuples(st.integers(0, max(devices - 1, 0)), st.integers(0, channels - 1))
    buffers = draw(st.lists(places, max_size=6)) if devices else []
    precopy = draw(st.integers(0, 2)) if devices else 0
    return Shape(channels, devices, tuple(buffers), draw(st.integers(0, 2)), precopy, draw(st.booleans()))


Mutation = tuple[str, int, int]
places = st.integers(0, 299)
reorderings = st.tuples(st.sampled_from((DROP, DOUBLE, SWAP, MOVE)), places, places)
mutations = reorderings | st.tuples(st.just(CHANGE), places, places)


def disturb(script: Script, mutation: Mutation) -> None:
    """Change the order of whole frames of one connection, or a bit of one."""
    what, at, to = mutation
    pieces = [piece for piece in script.pieces if piece.where != BACK]
    piece = pieces[at % len(pieces)]
    mine = [other for other in pieces if other.where == piece.where]
    other = mine[to % len(mine)]
    if what == DROP:
        script.pieces.remove(piece)
    elif what == DOUBLE:
        copy = Piece("copy", piece.where, piece.data, other.time_ns)
        script.pieces.insert(script.pieces.index(other) + 1, copy)
    elif what == SWAP:
        piece.data, other.data = other.data, piece.data
    elif what == CHANGE:
        place = to % min(len(piece.data), 300)  # of its heads, as a rule
        changed = piece.data[place] ^ 1 << at % 8
        piece.data = piece.data[:place] + bytes((changed,)) + piece.data[place + 1 :]
    elif piece is not other:
        script.pieces.remove(piece)
        script.pieces.insert(script.pieces.index(other) + 1, piece)


def frames(syntax: Syntax, data: bytes) -> Iterator[Frame]:
    """All frames of one direction. RemoteProtocolError when it is cut or cannot be read."""
    at = 0
    step = next(syntax, None)
    while step is not None:
        answer: bytes | None = None
        if isinstance(step, Want):
            answer = data[at : at + (step.size if not step.peek else len(data))]
            if len(answer) < step.size and not step.peek and not (step.may_end and not answer):
                raise RemoteProtocolError(f"cut inside {step.what}", channel="", offset=at)
            at += 0 if step.peek else len(answer)
        elif isinstance(step, Payload):
            at += step.size
        else:
            yield step
        try:
            step = syntax.send(answer) if answer is not None else next(syntax)
        except StopIteration:
            return


def refusal(script: Script) -> str:
    """Why an endpoint's tables refuse the stream, or "". Frames are taken connection by connection, then
    device state in the order of sending."""
    streams = {
        where: b"".join(p.data for p in script.pieces if p.where == where) for where in script.streams()
    }
    try:
        devices = _main(streams.pop(MAIN))
        plan: LoadPlan[None] = LoadPlan(list(devices))
        plan.start()
        for where, data in streams.items():
            _channel(where, data, plan, devices)
    except RemoteProtocolError as error:
        return error.message
    return "" if plan.complete else plan.missing()


def _main(data: bytes) -> dict[str, int]:
    course = Course(MAIN_TABLE, "main", local=False)
    devices: dict[str, int] = {}
    switched = False
    for frame in frames(main_channel(), data):
        course.take_frame(frame)
        if isinstance(frame, SectionItem) and frame.tag == Tag.SECTION_START and is_vfio(frame.idstr):
            devices.setdefault(frame.idstr, len(devices))
        switched |= isinstance(frame, CommandItem) and frame.command == Command.SWITCHOVER_START
    if course.phase is not Phase.DESCRIBED:
        raise RemoteProtocolError(f"main ends while {course.phase.value}", channel="main")
    if devices and not switched:
        raise RemoteProtocolError("loading never begins", channel="main")
    course.take(Event.CLOSE)
    return devices


def _channel(where: str, data: bytes, plan: LoadPlan[None], devices: dict[str, int]) -> None:
    course = Course(MULTIFD, where, local=False)
    for frame in frames(multifd_channel(), data):
        course.take_frame(frame)
        if not isinstance(frame, DeviceStateFrame) or frame.vfio is None:
            continue
        name = text(frame.head.idstr)
        if name not in devices:
            raise RemoteProtocolError(f"no device {name}", channel=where)
        config = bool(frame.vfio.flags & VFIO_DEVICE_STATE_CONFIG)
        plan.received(devices[name], Buffer(frame.vfio.idx, frame.payload_size, config, None))
        while (job := plan.take()) is not None:
            plan.written(job)
            plan.loaded(job)
    course.take(Event.CLOSE)


@settings(max_examples=examples(60))
@given(shape=shapes())
def test_a_legal_migration_holds_and_is_accepted(shape: Shape) -> None:
    script = build(shape)
    assert refusal(script) == ""
    report = judge(script)
    assert report.standing is Standing.HOLDS, (report.violations, report.unknown)


@settings(max_examples=examples(300))
@given(shape=shapes(), changes=st.lists(mutations, min_size=1, max_size=3))
def test_what_the_endpoints_refuse_never_holds(shape: Shape, changes: list[Mutation]) -> None:
    script = build(shape)
    for change in changes:
        disturb(script, change)
    why = refusal(script)
    if why:
        assert judge(script).standing is not Standing.HOLDS, why


@settings(max_examples=examples(300))
@given(shape=shapes(), changes=st.lists(reorderings, min_size=1, max_size=2))
def test_what_breaks_an_invariant_is_refused_unless_no_table_knows_of_it(
    shape: Shape, changes: list[Mutation]
) -> None:
    script = build(shape)
    for change in changes:
        disturb(script, change)
    broken = {violation.id for violation in judge(script).violations} - BEYOND
    if broken:
        assert refusal(script), broken
