# SPDX-License-Identifier: GPL-2.0-or-later
"""report.html says all in words, needs nothing else, is bounded, and runs nothing that came from outside."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from mockdev.journal import Failure, Loaded, Mark, Received, Saved, State
from mockdev.wire.structs import MULTIFD_DEVICE_STATE, VFIO_DEVICE_STATE
from tests.canaries.births import CANARIES
from tests.canaries.script import DEVICES, Script, good, packet
from verifier.check import check_path
from verifier.cli.group import execute
from verifier.report.explain import Field, dump, sights_of
from verifier.report.markup import Markup, data_block, tag, text
from verifier.report.pages import PAGE, TRACE, PageError, Pages
from verifier.verdict import Report, Standing

NAME = "<script>xx()/vfio"  # as long as the device's own


class Read(HTMLParser):
    """Elements, and the text outside of scripts and styles, of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.data = ""
        self._in = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((name, dict(attributes)))
        if name in ("script", "style"):
            self._in = "data" if ("id", "data") in attributes else name

    def handle_endtag(self, name: str) -> None:
        self._in = "" if name in ("script", "style") else self._in

    def handle_data(self, data: str) -> None:
        if self._in == "data":
            self.data += data
        elif not self._in:
            self.text += data


def page_of(script: Script, folder: Path) -> tuple[Report, str]:
    script.write_folder(folder)
    pages = Pages()
    report = check_path(folder, watch=pages.watch)
    pages.write(folder, report, str(folder), one_target=True)
    return report, (folder / PAGE).read_text()


def hostile() -> Script:
    """Names and texts from outside that would like to be markup."""
    script = good()
    for piece in script.pieces:
        piece.data = piece.data.replace(DEVICES[0].encode(), NAME.encode())
    for lines in script.lines.values():
        for number, line in enumerate(lines):
            if getattr(line, "device", "") == DEVICES[0]:
                lines[number] = msgspec.structs.replace(line, device=NAME)
    script.lines["target"].insert(
        -1,
        Failure(t=script.now_ns, message="</script><script>xx()</script>\u202e\x07<img src=x onerror=xx()>"),
    )
    return script


def test_the_verdict_and_every_lane_stand_there_in_words(tmp_path: Path) -> None:
    report, page = page_of(good(), tmp_path)
    read = Read(page)
    assert report.standing is Standing.HOLDS
    assert "Holds" in read.text
    for word in (
        *DEVICES,
        "channel 0",
        "channel 1",
        "return-path",
        "PRE_COPY_P2P",
        "switchover-start",
        "completed",
    ):
        assert word in read.text
    for part in ("stop", "save", "transfer", "load", "config", "resume"):
        assert f"<td>{part}</td>" in page
    assert all(invariant in read.text for invariant in report.exercised.invariants)


def test_the_page_needs_nothing_from_anywhere(tmp_path: Path) -> None:
    _, page = page_of(good(), tmp_path)
    for name, attributes in Read(page).tags:
        assert name not in ("link", "img", "iframe", "object", "embed", "base", "form")
        assert not {"src", "srcset", "background", "style"} & attributes.keys()
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"@import|url\(|https?://", page)


def test_what_comes_from_outside_is_text(tmp_path: Path) -> None:
    folder = tmp_path / "<script>xx()<b>"
    report, page = page_of(hostile(), folder)
    read = Read(page)
    assert any(row.id == NAME for row in report.devices)
    scripts = [attributes for name, attributes in read.tags if name == "script"]
    assert scripts == [{"type": "application/json", "id": "data"}, {}]
    assert "b" not in [name for name, attributes in read.tags if "xx" in str(attributes)]
    assert NAME in read.text
    assert "<script>xx()<b>" in read.text
    assert "</script><script>xx()</script>\\u202e\\x07<img src=x onerror=xx()>" in read.text
    assert not [attributes for _, attributes in read.tags if any(key.startswith("on") for key in attributes)]
    drawing = json.loads(read.data)[0]
    assert NAME in drawing["devices"]
    assert not re.search(r"[<>&]", read.data)


def test_only_the_pages_own_script_may_run(tmp_path: Path) -> None:
    _, page = page_of(good(), tmp_path)
    policies = [a["content"] for name, a in Read(page).tags if name == "meta" and "http-equiv" in a]
    (policy,) = policies
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


def test_a_witness_is_told_with_its_bytes_and_the_names_of_their_fields(tmp_path: Path) -> None:
    script = good()
    CANARIES["DS-3"](script)
    report, page = page_of(script, tmp_path)
    read = Read(page)
    (violation,) = report.violations
    assert violation.statement in read.text
    assert "hw/vfio/migration-multifd.c" in read.text
    ((sight,),) = sights_of(report.violations, one_target=True)
    assert sight.data == script.find("vf1.0").data
    names = [field.name for field in sight.fields]
    assert names == [place.name for place in (*MULTIFD_DEVICE_STATE.fields, *VFIO_DEVICE_STATE.fields)]
    assert next(f.value for f in sight.fields if f.struct == VFIO_DEVICE_STATE.c_name) == "1"
    assert "11 22 33 44" in read.text
    (mark,) = json.loads(read.data)[0]["witnesses"]
    rows = json.loads(read.data)[0]["rows"]
    assert (mark[0], rows[mark[1]]["name"]) == ("1.1", "channel 1")


@pytest.mark.parametrize("name", CANARIES)
def test_every_canarys_witnesses_are_found_again(name: str, tmp_path: Path) -> None:
    script = good()
    CANARIES[name](script)
    script.write_folder(tmp_path)
    report = check_path(tmp_path)
    for violation, sights in zip(
        report.violations, sights_of(report.violations, one_target=True), strict=True
    ):
        assert len(sights) == len(violation.witnesses)
        for sight in sights:
            assert sight.told
            assert (
                sight.data
                or sight.line
                or sight.witness.flow.endswith("run record")
                or not sight.witness.size
            )


def test_a_capture_that_went_away_is_said(tmp_path: Path) -> None:
    script = good()
    CANARIES["DS-3"](script)
    script.write_folder(tmp_path)
    report = check_path(tmp_path)
    (tmp_path / "capture.pcapng").unlink()
    ((sight,),) = sights_of(report.violations, one_target=True)
    assert "no such file" in sight.missing


def test_a_dump_names_fields_and_folds_what_repeats() -> None:
    data = bytes(range(16)) + bytes(16 * 5) + b"end"
    fields = [Field("s", "first", 0, 4, ""), Field("s", "later", 66, 2, "")]
    assert list(dump(data, fields)) == [
        "     0  00 01 02 03 04 05 06 07  08 09 0a 0b 0c 0d 0e 0f  ................  first",
        "    10  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  ................",
        "     *  the same 2 times more",
        "    40  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  ................  later",
        "    50  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  ................",
        "    60  65 6e 64                                          end",
    ]


def test_markup_escapes_whatever_is_not_markup() -> None:
    assert tag("p", "<b>&\"'", class_='a"b') == '<p class="a&quot;b">&lt;b&gt;&amp;&quot;&#x27;</p>'
    assert tag("p", [tag("i", 1), None, ("x", "y")], hidden=True, title=None) == "<p hidden><i>1</i>xy</p>"
    assert text(Markup("<b>")) == "<b>"
    assert "</script>" not in data_block("d", "</script><!--")[:-9]


# --- the command ------------------------------------------------------------------------------------


def test_report_writes_into_the_evidence_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good().write_folder(tmp_path)
    assert execute(["report", str(tmp_path)]) == 0
    assert f"holds: {tmp_path / PAGE} and {tmp_path / TRACE}" in capsys.readouterr().out
    assert (tmp_path / PAGE).is_file()
    assert not list(tmp_path.glob(".*.new"))


def test_report_of_a_file_goes_beside_it(tmp_path: Path) -> None:
    script = good()
    CANARIES["DS-3"](script)
    script.write_capture(tmp_path / "c.pcapng")
    assert execute(["report", str(tmp_path / "c.pcapng")]) == 1
    assert (tmp_path / "c.pcapng.report" / PAGE).is_file()
    good().write_folder(tmp_path / "run")
    assert execute(["report", str(tmp_path / "run" / "target.jsonl"), "-o", str(tmp_path / "a" / "b")]) == 5
    assert (tmp_path / "a" / "b" / TRACE).is_file()


def test_report_of_nothing_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad").write_bytes(b"no capture at all")
    assert execute(["report", str(tmp_path / "bad")]) == 4
    assert "bad" in capsys.readouterr().err
    assert not (tmp_path / "bad.report").exists()
    good().write_folder(tmp_path / "run")
    assert execute(["report", str(tmp_path / "run"), "-o", str(tmp_path / "bad")]) == 4
    assert "cannot be made" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    good().write_folder(tmp_path)
    pages = Pages()
    report = check_path(tmp_path, watch=pages.watch)
    with pytest.raises(PageError, match="cannot be written"):
        pages.write(tmp_path / "not there", report, "", one_target=True)


def test_a_run_whose_page_cannot_be_written_still_gives_its_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise PageError("report.html cannot be written: No space left on device")

    monkeypatch.setattr(Pages, "write", full)
    quick = ["--vfs", "1", "--state-size", "64KiB", "--ram", "0", "--profile", "unlimited"]
    assert execute(["run", *quick, "--transport", "memory", "-o", str(tmp_path / "run")]) == 4
    output, errors = capsys.readouterr()
    assert output.startswith("holds")
    assert errors == "vfmig: report.html cannot be written: No space left on device\n"


def test_a_page_stays_small_whatever_comes(tmp_path: Path) -> None:
    """Long names and messages, and the same violation many times."""
    script = good()
    for number in range(400):
        script.lines["target"].insert(
            -1, Failure(t=script.now_ns, message="x" * 100_000, device="y" * 1000 + str(number))
        )
        state = State(t=script.now_ns, device="z" * 100_000 + str(number), old="RUNNING", new="STOP" * 9999)
        script.lines["target"].insert(-1, state)
    for idx in range(40):
        script.after("vf1.0", "1", packet(1, 0, b"again"))
        script.after("vf1.0", "1", packet(1, 0x7FFF0000 + idx, b""))
    report, page = page_of(script, tmp_path)
    assert len(report.violations) > 30
    assert len(page) < 2 << 20
    assert "more violations" in page


def test_numbers_that_fit_nowhere_are_no_error(tmp_path: Path) -> None:
    huge = 1 << 200
    script = good()
    script.edit("target", Received, size=huge, queued_bytes=huge, idx=huge)
    script.edit("target", Loaded, size=-huge, queued_bytes=-huge)
    script.lines["source"].insert(1, Saved(t=huge, device=DEVICES[0], idx=0, size=1))
    script.lines["source"].insert(1, Mark(t=-huge, name="stop"))
    script.write_folder(tmp_path)
    pages = Pages()
    report = check_path(tmp_path, watch=pages.watch)
    pages.write(tmp_path, report, "huge", one_target=True)
    assert "2 frames and lines without a usable time" in (tmp_path / PAGE).read_text()
