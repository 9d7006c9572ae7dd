# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults as text: what the grammar takes, what each refusal says, and that the table is all there is."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mockdev.device.faults import NO_FAULTS, with_fault
from mockdev.errors import VfmigError
from mockdev.faultspec import FAULTS, Ends, FaultSpec, FaultSpecError, When, parse, parse_all

MS = 10**6
EXAMPLES = {"N": "1", "STATE": "STOP_COPY", "ERRNO": "eio", "TIME": "5ms", "SIZE": "2MiB", "BIT": "9"}


def spelled(pattern: str) -> str:
    """A form of the table with its capitals filled in."""
    for word in ("ERRNO", "STATE", "TIME", "SIZE", "BIT"):
        pattern = pattern.replace(word, EXAMPLES[word])
    return pattern.replace("vfN", "vf1").replace("channel.N", "channel.1")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("target.vf0.load:eio@2MiB", ("target", "vfN.load", 0, "", "", errno.EIO, When("byte", 2 << 20))),
        ("source.vf1.arc.STOP_COPY:eio", ("source", "vfN.arc.STATE", 1, "STOP_COPY", "", errno.EIO, None)),
        ("source.vf1.arc.stop:after=EMFILE", ("source", "vfN.arc.STATE", 1, "STOP", "after", 24, None)),
        ("source.vf2.save:stall=500ms", ("source", "vfN.save", 2, "", "stall", 500 * MS, None)),
        ("source.vf2.save:short=1@#3", ("source", "vfN.save", 2, "", "short", 1, When("index", 3))),
        ("target.vf29:reset@+100ms", ("target", "vfN", 29, "", "reset", 0, When("time", 100 * MS))),
        ("source.vf0:detach", ("source", "vfN", 0, "", "detach", 0, None)),
        ("source.vf0.data-size:says=0", ("source", "vfN.data-size", 0, "", "says", 0, None)),
        ("channel.3:close@10MiB", ("", "channel.N", 3, "", "close", 0, When("byte", 10 << 20))),
        ("target.main:close@1.5MB", ("target", "main", None, "", "close", 0, When("byte", 1_500_000))),
        ("return-path:drop", ("", "return-path", None, "", "drop", 0, None)),
        ("channel.0:flip=17@#2", ("", "channel.N", 0, "", "flip", 17, When("index", 2))),
        ("supervisor:kill", ("", "supervisor", None, "", "kill", 0, None)),
        ("source.process:cancel@+2s", ("source", "process", None, "", "cancel", 0, When("time", 2000 * MS))),
    ],
)
def test_what_is_understood(text: str, expected: tuple[object, ...]) -> None:
    assert parse(text) == FaultSpec(*expected, text)  # type: ignore[call-arg, arg-type]
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "write WHERE:WHAT or WHERE:WHAT@WHEN, such as target.vf0.load:eio@2MiB"),
        ("target.vf0.load", "write WHERE:WHAT or WHERE:WHAT@WHEN, such as target.vf0.load:eio@2MiB"),
        ("target.vf0.lod:eio", "no place is called 'vf0.lod'; there are vfN, vfN.save, vfN.load, "),
        ("target.vfx:reset", "no place is called 'vfx'"),
        ("channel.four:close", "no place is called 'channel.four'"),
        ("source.vf0.arc.STOPPED:eio", "no arc leads to 'STOPPED'; there are STOP, RUNNING, STOP_COPY, "),
        ("source.vf0.arc.ERROR:eio", "no arc leads to 'ERROR'"),
        ("vf0.load:eio", "at which end? Write source.vf0.load:eio or target.vf0.load:eio"),
        ("process:cancel", "at which end? Write source.process:cancel or target.process:cancel"),
        ("target.channel.1:drop", "channel.N:drop[@SIZE|@#PACKET|@+TIME] lies between the two ends"),
        ("source.vf0.save:close", "source.vf0.save cannot have 'close'; it can have ERRNO, stall=TIME, "),
        ("source.vf0.save:ebogus", "source.vf0.save cannot have 'ebogus'"),
        ("source.vf0.arc.STOP:error=bogus", "no error is called 'bogus'; write a name such as eio"),
        ("source.vf0.save:stall", "stall needs a value: stall=TIME"),
        ("source.vf0.save:stall=", "stall needs a value: stall=TIME"),
        ("source.vf0.save:stall=5", "'5' is no time; write 500ms, 2s or 250us"),
        ("source.vf0.save:stall=2000h", "'2000h' is no time"),
        ("source.vf0.save:stall=3601s", "3601s is more than an hour, which is the most"),
        ("source.vf0.save:eof=1", "eof takes no value"),
        ("source.vf0.save:short=0", "a read of no bytes would be the end: write short=1 or more, or eof"),
        ("source.vf0.save:eio@soon", "'soon' is no size; write 4096, 64KiB, 2MiB or 1GB"),
        ("source.vf0.save:eio@", "'' is no size"),
        ("source.vf0.save:eio@99999999999999TiB", "more than 9223372036854775807"),
        ("source.vf0.save:eio@#x", "'x' is no number"),
        (
            "source.vf0.save:eio@+5ms",
            "'@+5ms' is not for this fault; its form is vfN.save:ERRNO[@SIZE|@#BUFFER]",
        ),
        ("source.vf0.config:eio@3", "vfN.config:ERRNO strikes every time: leave out '@3'"),
        ("channel.0:flip", "flip needs a value: flip=BIT"),
        (
            "return-path:double",
            "return-path cannot have 'double'; it can have close, stall=TIME, flip=BIT, drop",
        ),
    ],
)
def test_what_is_refused_says_why(text: str, why: str) -> None:
    with pytest.raises(FaultSpecError) as caught:
        parse(text)
    assert str(caught.value).startswith(f"fault {text!r}: ")
    assert why in str(caught.value)


def test_one_supervisor_may_leave_its_own_end_out() -> None:
    assert parse("vf0.load:eio@2MiB", here="target").role == "target"
    assert parse("target.vf0.load:eio", here="target").role == "target"
    assert parse("supervisor:kill", here="source").role == "source"
    assert parse("channel.1:close", here="source").role == ""
    with pytest.raises(FaultSpecError, match="this is the source"):
        parse("target.vf0.load:eio", here="source")


def test_a_run_takes_faults_of_what_it_has_and_each_once() -> None:
    texts = (
        "source.vf1.save:eio",
        "target.vf1.load:eio",
        "channel.5:drop@#1",
        "channel.5:drop@#2",
        "main:close",
    )
    assert [str(spec) for spec in parse_all(texts, vfs=2, channels=6)] == list(texts)
    for text, why in (
        ("source.vf2.save:eio", "there is no vf2 in this run; there is vf0 to vf1"),
        ("channel.6:drop", "there is no channel 6 in this run; there is channel 0 to channel 5"),
    ):
        with pytest.raises(FaultSpecError, match=why):
            parse_all((text,), vfs=2, channels=6)
    with pytest.raises(FaultSpecError, match="there is none"):
        parse_all(("channel.0:drop",), vfs=2, channels=0)
    with pytest.raises(FaultSpecError, match=r"a fault of this kind already: source\.vf0\.save:eio@1"):
        parse_all(("source.vf0.save:eio@1", "source.vf0.save:enomem@2"), vfs=1, channels=1)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.form)
def test_every_line_of_the_table_can_be_written_and_every_device_fault_happens(fault: object) -> None:
    assert isinstance(fault, type(FAULTS[0]))
    assert fault.sentence.endswith(".")
    whens = ["", *("@" + {"#": "#3", "+": "+5ms"}.get(when[0], "7") for when in fault.whens)]
    end = "target." if fault.ends is Ends.ONE else ""
    for when in whens:
        spec = parse(end + spelled(f"{fault.where}:{fault.what}") + when)
        assert (spec.place, spec.what) == (fault.where, fault.name)
        if fault.where.startswith("vfN"):
            assert with_fault(NO_FAULTS, spec) != NO_FAULTS
    if fault.ends is Ends.ANY:
        assert parse("source." + spelled(f"{fault.where}:{fault.what}")).role == "source"


@given(st.text(max_size=40) | st.text("targesourcevf0.load:arcSTOP@#+=1msMiB", max_size=40))
def test_any_text_is_a_fault_or_a_sentence(text: str) -> None:
    sentence = ""
    try:
        parse(text)
    except VfmigError as error:
        sentence = str(error)
    assert not sentence or repr(text) in sentence
