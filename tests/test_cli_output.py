# SPDX-License-Identifier: GPL-2.0-or-later
"""The command as other programs see it: pipes that end, full disks, no terminal, a narrow terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest

from tests.canaries.script import good

VFMIG = [sys.executable, "-c", "from verifier.cli import main; main()"]
QUICK = ["--profile", "unlimited", "--vfs", "2", "--state-size", "1MiB"]
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def vfmig(*arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
    """The command, run to its end."""
    if not how.keys() & {"stdout", "preexec_fn"}:
        how["capture_output"] = True
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [*VFMIG, *arguments], text=True, timeout=60, stdin=subprocess.DEVNULL, **how
    )
    return done


@pytest.fixture(name="capture", scope="module")
def _capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("capture") / "capture.pcapng"
    good(journals=False).write_capture(path)
    return path


def broken_pipe() -> int:
    """The writing end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


@pytest.mark.parametrize("arguments", ["show", "show --json", "check", "check --json", "catalogue"])
def test_a_reader_that_left(arguments: str, capture: Path) -> None:
    paths = [] if arguments == "catalogue" else [str(capture)]
    writing = broken_pipe()
    done = vfmig(*arguments.split(), *paths, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_verdict_outlives_its_reader(tmp_path: Path) -> None:
    """`vfmig check bad | head -0` with pipefail is still a failure."""
    script = good(journals=False)
    script.patch("sync0.1", 0, b"\0\0\0\0")
    script.write_capture(tmp_path / "bad.pcapng")
    writing = broken_pipe()
    done = vfmig("check", str(tmp_path / "bad.pcapng"), stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("arguments", [("show", "{}"), ("check", "{}"), ("catalogue",), ("--help",)])
def test_a_full_disk_behind_stdout(arguments: tuple[str, ...], capture: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = vfmig(*(a.format(capture) for a in arguments), stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 4
    assert done.stderr == "vfmig: standard output cannot be written: No space left on device\n"


def test_standard_files_that_are_closed(tmp_path: Path) -> None:
    """No file of the run takes the number of a closed one: all of its evidence is whole."""
    out = tmp_path / "out"
    options = [*QUICK, "--vfs", "1"]
    done = vfmig("run", *options, "-o", str(out), preexec_fn=lambda: os.closerange(0, 3))
    assert done.returncode == 0
    assert vfmig("check", str(out)).returncode == 0


def test_no_colour_no_bars_and_no_folding_off_a_terminal(tmp_path: Path) -> None:
    options = [*QUICK, "--vfs", "2"]
    done = vfmig("run", *options, "-o", str(tmp_path / "out"), env={**os.environ, "COLUMNS": "40"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert lines[0].startswith("holds: ")
    assert [line.split()[0] for line in lines[-3:]] == ["0000:00:02.0/vfio", "0000:00:03.0/vfio", "evidence"]
    assert all(re.search(r" yes  [0-9a-f]{16}$", line.rstrip()) for line in lines[-3:-1])


def on_terminal(columns: int, arguments: list[str], **environment: str) -> tuple[int, str]:
    """Exit status and what a terminal of so many columns was sent."""
    parent, child = pty.openpty()
    ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "FORCE_COLOR")}
    process = subprocess.Popen(
        [*VFMIG, *arguments],
        stdin=child,
        stdout=child,
        stderr=child,
        env={**env, "TERM": "xterm-256color", **environment},
        start_new_session=True,
    )
    os.close(child)
    said = b""
    while True:
        try:
            piece = os.read(parent, 1 << 16)
        except OSError:  # EIO: the other end is closed
            break
        if not piece:
            break
        said += piece
    os.close(parent)
    return process.wait(60), said.decode()


@pytest.mark.parametrize("columns", [80, 160])
def test_a_report_on_a_terminal(columns: int, tmp_path: Path) -> None:
    options = [
        "run",
        "--profile",
        "unlimited",
        "--vfs",
        "2",
        "--state-size",
        "1MiB",
        "--transport",
        "memory",
        "-o",
    ]
    status, said = on_terminal(columns, [*options, str(tmp_path / "out")])
    assert status == 0
    assert "\x1b[1;32mholds" in said
    text = ESCAPE.sub("", said)
    rows = [line for line in text.splitlines() if line.startswith("0000:00:0")]
    assert len(rows) == 2
    assert all("yes" in row and len(row.rstrip()) <= columns and "…" not in row for row in rows)
    assert bool(re.search(r"[0-9a-f]{16}", rows[0])) is (columns == 160)


def test_no_color_is_honoured(capture: Path) -> None:
    status, said = on_terminal(80, ["check", str(capture)], NO_COLOR="1")
    assert status == 0
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", said)


def test_names_do_not_command_the_terminal(tmp_path: Path) -> None:
    done = vfmig("check", str(tmp_path / "\x1b[31mred[/]"))
    assert done.returncode == 4
    assert "\\x1b[31mred[/]" in done.stdout
    assert "\x1b" not in done.stdout


def test_completion_and_version() -> None:
    def complete(**environment: str) -> str:
        return vfmig(env={**os.environ, **environment}).stdout

    for shell in ("bash", "zsh", "fish"):
        assert "_VFMIG_COMPLETE=" in complete(_VFMIG_COMPLETE=f"{shell}_source")
    words = complete(_VFMIG_COMPLETE="bash_complete", COMP_WORDS="vfmig run --trans", COMP_CWORD="2")
    assert "--transfer" in words
    assert "--transport" in words
    assert vfmig("--version").stdout.startswith("vfmig, version ")


def test_the_version_imports_nothing_heavy() -> None:
    """What makes `--version` slow is imports; time itself is no matter for a test."""
    code = "import sys; from verifier.cli.group import execute; execute(['--version']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"rich", "msgspec", "scapy", "xxhash", "zstandard", "asyncio"} & set(done.stdout.split())


def test_single_invariants_are_printed_in_full() -> None:
    done = vfmig("catalogue", "ds-10", "RP-8")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.partition("  ")[0] for line in done.stdout.splitlines() if line[0] != " "] == [
        "DS-10",
        "RP-8",
    ]
    assert done.stdout.count("      sound: ") == done.stdout.count("      misses: ") == 2


@pytest.mark.parametrize(
    ("name", "why"),
    [("DS-99", "there is no DS-99; the families are CH, "), ("RS-11", "RS-11 is not judged: ")],
)
def test_an_invariant_that_is_none_is_a_wrong_use(name: str, why: str) -> None:
    done = vfmig("catalogue", name)
    assert (done.returncode, done.stdout) == (2, "")
    assert why in done.stderr


def test_the_catalogue_as_json_has_what_is_not_judged() -> None:
    told = json.loads(vfmig("catalogue", "--json").stdout)
    assert {"id", "statement", "sound", "misses"} <= told["invariants"][0].keys()
    assert {rule["id"] for rule in told["not_judged"]} >= {"RS-11", "RS-3"}
    assert "not_judged" not in json.loads(vfmig("catalogue", "DS-10", "--json").stdout)
