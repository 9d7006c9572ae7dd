# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices lent to a program that is no QEMU (verifier/bench/vfio_user.py): calls, data, ends."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mockdev.attach.config import AttachConfig
from mockdev.attach.control import ControlError, ask
from mockdev.attach.supervisor import Supervisor
from mockdev.errors import VfmigError
from mockdev.journal import (
    AnyLine,
    End,
    Failure,
    Image,
    JournalError,
    Read,
    State,
    Unanswered,
    Verified,
    Wrote,
    read,
)
from mockdev.vfio.pci import CX7_VF, config_space

ROOT = Path(__file__).parent.parent
SIZE = 3 << 20
DEADLINE_S = 60.0


class Lent:
    """A supervisor with its program; what they said."""

    def __init__(self, folder: Path, *steps: str, **options: Any) -> None:
        self.journal = folder / "journal.jsonl"
        self.log = folder / "log"
        self.control = folder / "control"
        command = (sys.executable, "-m", "verifier.bench.vfio_user", "{iommufd}", "{vf0}", *steps)
        config = AttachConfig(
            command=options.pop("command", command),
            names=("vf0",),
            journal=str(self.journal),
            control=str(self.control),
            log=str(self.log),
            **{"profile": "unlimited", "state_bytes": SIZE, "chunk_bytes": 1 << 20, **options},
        )
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mockdev.attach.supervisor"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(config) + b"\n")
        self.process.stdin.flush()

    def end(self) -> dict[str, Any]:
        """What the supervisor said last, after its end."""
        out, complaints = self.process.communicate(timeout=DEADLINE_S)
        assert complaints == b""
        result: dict[str, Any] = json.loads(out.splitlines()[-1])
        return result

    @property
    def told(self) -> dict[str, Any]:
        """What the program printed last."""
        lines = self.log.read_text().splitlines()
        assert lines
        assert lines[-1].startswith("{"), lines
        result: dict[str, Any] = json.loads(lines[-1])
        return result

    def asleep(self) -> int:
        """Wait until the program sleeps; its pid."""
        wait_for(lambda: self.log.exists() and self.log.read_text().endswith("}\n"))
        return int(self.told["pid"])

    def lines(self) -> list[AnyLine]:
        """The journal."""
        return list(read(self.journal))

    def kill(self) -> None:
        """Whatever happened: nothing of it stays."""
        self.process.kill()
        self.process.communicate()


def wait_for(done: Any) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def lend(tmp_path: Path) -> Iterator[Any]:
    with contextlib.ExitStack() as stack:

        def begin(*steps: str, **options: Any) -> Lent:
            lent = Lent(tmp_path, *steps, **options)
            stack.callback(lent.kill)
            return lent

        yield begin


def gone(pidfd: int) -> bool:
    """Whether a process has ended within the deadline."""
    return bool(select.select([pidfd], [], [], DEADLINE_S)[0])


def test_what_qemu_asks_at_first_is_answered_as_the_kernel_would(lend: Any) -> None:
    lent = lend("bind", "info", "config", "unknown")
    assert lent.end() == {"event": "result", "status": 0, "error": ""}
    told = lent.told
    assert told["no_room"] == errno.EMSGSIZE
    assert told["ranges"] == [[0, 0xFEDFFFFF], [0xFEF00000, 2**48 - 1]]
    assert told["info"]["flags"] == 3
    assert (told["info"]["num_regions"], told["info"]["num_irqs"]) == (9, 5)
    assert told["flags"] == 3  # STOP_COPY and P2P
    assert bytes.fromhex(told["config"]) == bytes(config_space(CX7_VF))
    assert told["unknown"] == [errno.ENOTTY, errno.ENOTTY]
    unanswered = [line for line in lent.lines() if isinstance(line, Unanswered)]
    assert [(line.on, line.request) for line in unanswered] == [("vf0", 0x3BFF), ("iommufd", 0x3BFF)]


@pytest.mark.parametrize("profile", ["unlimited", "opaque", "connectx7"])
def test_a_state_read_from_one_is_loaded_by_another(lend: Any, tmp_path: Path, profile: str) -> None:
    state = tmp_path / "state"
    source = lend("bind", "keep", "300000", str(state), profile=profile)
    assert source.end()["status"] == 0
    saved = source.lines()
    target = lend("bind", "load", "100000", str(state), profile=profile, role="target", filled=False)
    assert target.end()["status"] == 0
    loaded = target.lines()

    reads = [line for line in saved if isinstance(line, Read)]
    writes = [line for line in loaded if isinstance(line, Wrote)]
    size = state.stat().st_size
    for pieces in (reads, writes):
        assert [line.offset for line in pieces] == [
            sum(p.size for p in pieces[:n]) for n in range(len(pieces))
        ]
        assert sum(line.size for line in pieces) == size
    assert max(line.size for line in reads) == 300000
    images = [[line for line in lines if isinstance(line, Image)] for lines in (saved, loaded)]
    assert len(images[0]) == len(images[1]) == 1
    assert images[0][0].digest == images[1][0].digest
    assert [line.equal for line in loaded if isinstance(line, Verified)] == [True]
    walked = [(line.old, line.new) for line in loaded if isinstance(line, State)]
    assert walked[:4] == [
        ("RUNNING", "RUNNING_P2P"),
        ("RUNNING_P2P", "STOP"),
        ("STOP", "RESUMING"),
        ("RESUMING", "STOP"),
    ]


def test_calls_that_nobody_knows_are_counted(lend: Any) -> None:
    lent = lend("bind", "unknown", "sleep")
    pid = lent.asleep()
    assert ask(lent.control, ask="status")["unanswered"] == 2
    os.kill(pid, signal.SIGTERM)
    assert lent.end()["status"] == 0


def test_dma_reaches_the_programs_memory_where_it_is_mapped(lend: Any) -> None:
    lent = lend("bind", "sleep")
    pid = lent.asleep()
    ask(lent.control, ask="dma", device=0, iova=0x100000, hex="00112233445566778899aabbccddeeff")
    with pytest.raises(ControlError, match="not mapped"):
        ask(lent.control, ask="dma", device=0, iova=0x300000, hex="00")
    status = ask(lent.control, ask="status")
    assert status["pid"] == pid
    assert status["devices"][0]["plugged"] is True
    os.kill(pid, signal.SIGTERM)
    assert lent.end()["status"] == 0
    assert lent.told["ram"] == "00112233445566778899aabbccddeeff"


def test_the_exit_status_is_passed_on(lend: Any) -> None:
    assert lend("bind", "exit", "7").end()["status"] == 7


def test_a_signal_is_passed_on(lend: Any) -> None:
    lent = lend("bind", "sleep")
    lent.asleep()
    lent.process.send_signal(signal.SIGTERM)  # goes to the program, which ends by itself
    assert lent.end()["status"] == 0


def test_a_program_that_is_killed_ends_its_supervisor(lend: Any) -> None:
    lent = lend("bind", "sleep")
    os.kill(lent.asleep(), signal.SIGKILL)
    assert lent.end()["status"] == 128 + signal.SIGKILL
    (last,) = [line for line in lent.lines() if isinstance(line, End)]
    assert last.outcome == "failed"


def test_no_program_outlives_its_supervisor(lend: Any) -> None:
    lent = lend("bind", "sleep")
    pidfd = os.pidfd_open(lent.asleep())
    try:
        lent.process.kill()
        assert gone(pidfd)
    finally:
        os.close(pidfd)


def test_no_program_outlives_who_started_its_supervisor(tmp_path: Path) -> None:
    """Not even one that hears no signal, as a QEMU that hangs."""
    said = tmp_path / "said"
    deaf = "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    deaf += "; open(sys.argv[1], 'w').write(str(os.getpid()) + chr(10)); time.sleep(1000)"
    config = AttachConfig(
        command=(sys.executable, "-c", deaf, str(said)),
        names=("vf0",),
        journal=str(tmp_path / "journal.jsonl"),
        state_bytes=SIZE,
    )
    starter = f"""
import os, subprocess, sys, time
import msgspec
from mockdev.attach.config import AttachConfig
config = msgspec.json.decode({msgspec.json.encode(config)!r}, type=AttachConfig)
config = msgspec.structs.replace(config, parent=os.getpid())
command = [sys.executable, "-m", "mockdev.attach.supervisor"]
supervisor = subprocess.Popen(command, stdin=subprocess.PIPE)
supervisor.stdin.write(msgspec.json.encode(config) + bytes([10]))
supervisor.stdin.flush()
time.sleep(1000)
"""
    started = subprocess.Popen([sys.executable, "-c", starter], cwd=ROOT)
    pidfd = -1
    try:
        wait_for(lambda: said.exists() and said.read_text().endswith("\n"))
        pidfd = os.pidfd_open(int(said.read_text()))
        started.kill()
        assert gone(pidfd)
    finally:
        started.kill()
        started.wait()
        if pidfd >= 0:
            os.close(pidfd)


def test_a_killed_load_leaves_nothing_waiting(lend: Any, tmp_path: Path) -> None:
    """The program dies while the device makes it wait: the supervisor notices, and says how it ended."""
    state = tmp_path / "state"
    assert lend("bind", "keep", "1048576", str(state)).end()["status"] == 0
    slow = lend("bind", "load", "1048576", str(state), profile="connectx7", role="target", filled=False)
    wait_for(lambda: slow.journal.exists() and b'"RESUMING"' in slow.journal.read_bytes())
    pid = ask(slow.control, ask="status")["pid"]
    os.kill(pid, signal.SIGKILL)
    assert slow.end()["status"] == 128 + signal.SIGKILL


def test_a_command_that_is_none_is_a_sentence(lend: Any) -> None:
    lent = lend(command=("/nonexistent/qemu",))
    result = lent.end()
    assert (result["status"], result["error"]) == (
        4,
        "/nonexistent/qemu cannot be run: No such file or directory",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"command": ()}, "no QEMU command"),
        ({"names": ()}, "0 devices"),
        ({"names": ("a", "a")}, "one name"),
        ({"spare": 2}, "2 spare"),
        ({"state_bytes": 0}, "0 bytes"),
        ({"profile": "x"}, "no profile 'x'"),
        ({"precopy_bytes": 1 << 40}, "before the stop"),
        ({"chunk_bytes": 0}, "chunks"),
        ({"faults": ("vf1.load:eio",)}, r"'vf1\.load:eio': there are devices 0 to 0"),
        ({"command": ("q", "vfio-pci,fd={vf1}")}, r"\{vf1\} in QEMU's command: there are devices 0 to 0"),
        ({"command": ("q", "{sysfs0}")}, r"\{sysfs0\} in QEMU's command: there are folders only by groups"),
    ],
)
def test_a_configuration_that_cannot_be_run_is_named(options: dict[str, Any], message: str) -> None:
    config = AttachConfig(**{"command": ("q",), "names": ("vf0",), **options})
    with pytest.raises(VfmigError, match=message):
        config.check()


def test_a_control_socket_that_nobody_serves_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="no supervisor answers"):
        ask(tmp_path / "none", ask="status")


@pytest.mark.parametrize(
    "line",
    [b"[" * 500_000, b'{"ask":"fault","spec":5}', b'{"ask":"dma","device":0,"iova":-5,"hex":"00"}', b"\xff"],
)
def test_no_question_ends_a_supervisor(lend: Any, line: bytes) -> None:
    lent = lend("bind", "sleep")
    pid = lent.asleep()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(lent.control))
        client.sendall(line + b"\n")
        assert b'"error"' in client.recv(4096)
    assert ask(lent.control, ask="status")["pid"] == pid
    os.kill(pid, signal.SIGTERM)
    assert lent.end()["status"] == 0


def test_who_does_not_read_its_answers_is_left(lend: Any) -> None:
    lent = lend("bind", "sleep")
    pid = lent.asleep()
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.connect(str(lent.control))
        deaf.setblocking(False)
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while True:
                deaf.send(b'{"ask":"status"}\n' * 1000)
        assert ask(lent.control, ask="status")["pid"] == pid
    os.kill(pid, signal.SIGTERM)
    assert lent.end()["status"] == 0


def test_a_file_in_the_place_of_the_control_socket_stays(lend: Any, tmp_path: Path) -> None:
    (tmp_path / "control").write_text("mine")
    result = lend("bind").end()
    assert result["status"] == 4
    assert "control cannot be made: Address already in use" in result["error"]
    assert (tmp_path / "control").read_text() == "mine"


@pytest.mark.parametrize("answer", [b"5\n", b"SSH-2.0\n"])
def test_somebody_else_at_the_control_socket_is_a_sentence(tmp_path: Path, answer: bytes) -> None:
    path = tmp_path / "other"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()

        def speak() -> None:
            client, _ = other.accept()
            with client:
                client.recv(4096)
                client.sendall(answer)

        speaker = threading.Thread(target=speak)
        speaker.start()
        with pytest.raises(ControlError, match="is no supervisor"):
            ask(path, ask="status")
        speaker.join()


def test_a_journal_that_cannot_be_written_is_a_sentence() -> None:
    config = AttachConfig(command=("true",), names=("vf0",), journal="/nonexistent/journal")
    with pytest.raises(JournalError, match="/nonexistent/journal cannot be written: No such file"):
        Supervisor(config).run()


def test_a_killed_supervisor_leaves_no_folder(
    lend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    lent = lend("bind", "sleep")
    lent.asleep()
    lent.kill()
    assert list(temporary.iterdir()) == []


def test_arbitrary_calls_get_an_errno(lend: Any) -> None:
    """On all reserved descriptors, with any argument: the supervisor ends as the program does, in order."""
    program = Path(__file__).parent / "arbitrary_calls.py"
    for route, per_device in (("iommufd", 3), ("legacy", 4)):
        command = (sys.executable, str(program), "{vf0}", str(1 + per_device), "4000")
        lent = lend(command=command, route=route, profile="opaque")
        assert lent.end() == {"event": "result", "status": 0, "error": ""}
        assert lent.told["calls"] == 4000
        # States were walked through, data files opened, read and written.
        assert min(lent.told.values()) > 0, lent.told
        assert not [line for line in lent.lines() if isinstance(line, Failure)]
