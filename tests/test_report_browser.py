# SPDX-License-Identifier: GPL-2.0-or-later
"""report.html in a real browser: it draws, moves by keyboard, marks witnesses, and complains of nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mockdev.wire import writer
from tests.browser import Browser, chromium
from tests.canaries.births import CANARIES
from tests.canaries.script import DEVICES, Piece, Script, good
from tests.test_report_page import hostile, page_of
from verifier.check import check_path
from verifier.cli.group import execute
from verifier.report.pages import PAGE, Pages

FRAMES = 100_000
PAGE_BYTES_MAX = 5 << 20
_EACH_NS = 10_000
QUICK = ["--profile", "unlimited", "--vfs", "2", "--state-size", "3MiB", "--ram", "1MiB", "--channels", "3"]
DRAWN = "return document.querySelector('[data-drawn]')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as started:
        started.size(1280, 900)
        yield started


def opened(browser: Browser, page: Path) -> None:
    """Load a page, and wait until it has drawn its picture."""
    browser.complaints()
    browser.open(page)
    browser.until(DRAWN)


def view(browser: Browser) -> tuple[float, float]:
    """From where to where the picture shows, in ns, once what was asked for is drawn."""
    browser.until("return !pictures[0].wanted")
    start, end = browser.run("const of = document.querySelector('figure').dataset; return [+of.from, +of.to]")
    return start, end


def readout(browser: Browser) -> str:
    said: str = browser.run("return document.querySelector('.readout').textContent")
    return said


def chosen(browser: Browser) -> int:
    """The number of the chosen item in its lane."""
    return int(browser.run("return pictures[0].item"))


def violated(folder: Path) -> Path:
    script = good()
    CANARIES["DS-3"](script)
    page_of(script, folder)
    return folder / PAGE


def test_the_page_of_a_run_draws_without_a_complaint(browser: Browser, tmp_path: Path) -> None:
    assert execute(["run", *QUICK, "-o", str(tmp_path / "run")]) == 0
    opened(browser, tmp_path / "run" / PAGE)
    assert browser.complaints() == []
    colours = browser.run(
        "const box = document.querySelector('.view canvas');"
        "const data = box.getContext('2d').getImageData(0, 0, box.width, box.height).data;"
        "const found = new Set();"
        "for (let i = 0; i < data.length; i += 4) found.add(data[i] << 16 | data[i + 1] << 8 | data[i + 2]);"
        "return [...found]"
    )
    assert {0x2F6FBD, 0xC2641A} <= set(colours)  # both devices
    rows = browser.run("return pictures[0].rows.map(row => row.name)")
    assert {"channel 0", "channel 1", "channel 2", "downtime", "resume"} <= set(rows)
    assert len(browser.run("return [...document.querySelectorAll('#words tbody tr')].map(r => 1)")) > len(
        rows
    )


def test_keys_move_the_view_and_choose_lanes_and_items(browser: Browser, tmp_path: Path) -> None:
    opened(browser, violated(tmp_path))
    browser.run("document.querySelector('.view').focus()")
    start, end = view(browser)
    browser.press("+")
    closer = view(browser)
    assert start < closer[0] < closer[1] < end
    browser.press("right")
    assert view(browser)[0] > closer[0]
    browser.press("left", "-")
    assert view(browser) == pytest.approx((start, end))
    browser.press("down", "down")
    view(browser)
    assert browser.run("return document.querySelector('figure').dataset.lane") == "1"
    assert readout(browser).startswith("Lane migration target, marks")
    browser.press("up", ".")
    view(browser)
    assert chosen(browser) == 1
    assert readout(browser) == "source at 39 ms: switchover-ack"
    browser.press(",")  # the one before, out of sight until now
    assert view(browser)[0] < 0 < start
    assert chosen(browser) == 0
    assert readout(browser) == "source at 0 µs: begins"
    browser.press(",")
    assert chosen(browser) == 0
    browser.press("0", "up", ".")  # of what is in sight, the first
    view(browser)
    assert chosen(browser) == 0
    browser.press(*"." * 9)
    view(browser)
    assert readout(browser) == "source at 113 ms: ends: completed, may not run the VM"
    browser.press("d")
    assert view(browser) != pytest.approx((start, end))
    browser.press("0")
    whole = view(browser)
    assert whole[0] < 0 < browser.run("return pictures[0].data.span") < whole[1]
    assert browser.complaints() == []


def test_the_focus_goes_through_the_page_by_tab_and_can_be_seen(browser: Browser, tmp_path: Path) -> None:
    opened(browser, violated(tmp_path))
    seen: list[str] = []
    while len(seen) < 60:
        browser.press("tab")
        name, outline = browser.run(
            "const at = document.activeElement;"
            "if (at === document.body) return ['', ''];"  # behind the last
            "return [at.getAttribute('aria-label') || at.textContent, getComputedStyle(at).outlineStyle]"
        )
        if not name:
            break
        assert outline != "none", name
        seen.append(name)
    order = ["Skip to the time line", "Skip to the violations", "Zoom in", "Witness after", "Time line of"]
    order += ["Show witness 1.1 on the time line", "Bytes of witness 1.1", "Devices"]
    places = [next(i for i, name in enumerate(seen) if name.startswith(wanted)) for wanted in order]
    assert places == sorted(places)


def test_witnesses_are_marked_and_stepped_through(browser: Browser, tmp_path: Path) -> None:
    opened(browser, violated(tmp_path))
    red = browser.run(
        "const p = pictures[0], [, lane, at] = p.data.witnesses[0];"
        "const row = p.rows.find(row => row.number === lane);"
        "return [...p.context.getImageData(Math.round(p.x(at)), row.y, 1, 1).data].slice(0, 3)"
    )
    assert red == [0xB3, 0x26, 0x1E]
    browser.run("document.querySelector('.view').focus()")
    for _ in range(8):
        browser.press("+")
    browser.press("n")
    start, end = view(browser)
    assert start < browser.run("return pictures[0].data.witnesses[0][2]") < end
    assert readout(browser).startswith("Witness 1.1 at")
    assert "channel 1: DS-3: version 1" in readout(browser)
    browser.press("0")
    browser.click("button[data-witness='1.1']")
    assert browser.run("return document.activeElement.className") == "view"
    assert "DS-3" in readout(browser)


def test_nothing_from_outside_runs(browser: Browser, tmp_path: Path) -> None:
    folder = tmp_path / "<script>xx()<b>"
    page_of(hostile(), folder)
    opened(browser, folder / PAGE)
    assert browser.complaints() == []  # neither an unknown function nor a blocked script
    assert browser.run("return document.scripts.length") == 2
    assert "<script>xx()/vfio" in browser.run("return document.body.innerText")


def test_it_fits_a_narrow_window_and_dark_colours(browser: Browser, tmp_path: Path) -> None:
    page = violated(tmp_path)
    try:
        browser.size(800, 900, dark=True)
        opened(browser, page)
        assert browser.run("return document.documentElement.scrollWidth") <= 800
        paper = browser.run("return [...pictures[0].context.getImageData(2, 2, 1, 1).data].slice(0, 3)")
        assert paper == [0x14, 0x17, 0x1B]
    finally:
        browser.size(1280, 900)


def test_a_page_of_a_hundred_thousand_frames_is_small_and_draws(browser: Browser, tmp_path: Path) -> None:
    crowded(FRAMES).write_capture(tmp_path / "capture.pcapng")
    pages = Pages()
    report = check_path(tmp_path, [], pages.watch)  # what the page holds, and nothing judged
    pages.write(tmp_path, report, "crowded", one_target=True)
    assert (tmp_path / PAGE).stat().st_size < PAGE_BYTES_MAX
    opened(browser, tmp_path / PAGE)
    assert browser.complaints() == []
    assert "Left out: details" in browser.run("return document.querySelector('.left-out').textContent")
    shown = browser.run(
        "return pictures[0].rows.filter(row => row.what === 'frames')"
        ".reduce((sum, row) => sum + row.count.reduce((a, b) => a + b, 0), 0)"
    )
    assert shown >= FRAMES


def crowded(frames: int) -> Script:
    """A good migration, by its capture alone, with so many more buffers of its second device."""
    script = good(journals=False)
    first = script.find("vf1.0")
    pieces = []
    for number in range(frames):
        data = writer.device_state_packet(DEVICES[1], 0, 100 + number, 1) + b"\0"
        pieces.append(Piece("more", str(number % 2), data, first.time_ns + number * _EACH_NS))
    place = script.pieces.index(first) + 1
    for piece in script.pieces[place:]:
        piece.time_ns += frames * _EACH_NS
    script.pieces[place:place] = pieces
    return script
