# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU that is not there, is none, is too old, or dies: a sentence with cause and remedy, exit code 4, and
nothing left behind. The QEMUs are small scripts."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mockdev.errors import CancelledError, VfmigError
from mockdev.lab import qemu, qemu_end
from mockdev.lab.migration import Cancel, Pair, record_template, run_migration
from mockdev.lab.qemu import Qemu, QemuError, find_qemu
from mockdev.lab.qemu_end import QemuEnd, Vm
from mockdev.runtime.config import MigrationConfig
from tests.confined import FEW_FILES, LISTENED, WITHOUT_MEMORY
from verifier.cli.group import execute
from verifier.history.observation import QmpEvent
from verifier.history.qmp import read_events

END_S = 30.0
SMALL = ["--vfs", "1", "--state-size", "1MiB", "--profile", "unlimited"]
PAIRS = [("qemu", "qemu"), ("qemu", "mock"), ("mock", "qemu")]


@pytest.fixture(name="home")
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for fakes; what is temporary lies in its own, which has to be empty in the end, as has the
    list of processes that were started with anything of this folder."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.chdir(tmp_path)
    qemu.qemu_version.cache_clear()
    yield tmp_path
    assert list(temporary.iterdir()) == []
    deadline = time.monotonic() + END_S
    while left := running(str(tmp_path)):
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


def running(word: str) -> list[str]:
    """Command lines of processes with this in it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # ended meanwhile
            continue
        if word in line and entry.parent.name != str(os.getpid()):
            found.append(line)
    return found


def fake(home: Path, *lines: str, version: str = "10.1.0") -> str:
    """A program that gives its release like a QEMU, and then does this."""
    path = home / "fake-qemu"
    head = ["#!/bin/sh", f'[ "$1" = --version ] && echo "QEMU emulator version {version}" && exit 0']
    path.write_text("\n".join([*head, *lines]) + "\n")
    path.chmod(0o755)
    return str(path)


def run(binary: str, capsys: pytest.CaptureFixture[str], source: str = "qemu", target: str = "qemu") -> str:
    """What the command says, having refused with exit code 4."""
    code = execute(["run", "--source", source, "--target", target, "--qemu", binary, *SMALL, "-o", "out"])
    output, errors = capsys.readouterr()
    assert (code, output) == (4, "")
    assert "Traceback" not in errors
    return errors


@pytest.mark.parametrize(("source", "target"), PAIRS)
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda _: "no-such-qemu", "no-such-qemu is not installed; on Debian 13: apt install"),
        (
            lambda home: str(home / "nothing"),
            "/nothing; give the path of a qemu-system-x86_64, or install one",
        ),
        (lambda home: str(home), "no program that we may run"),
        (lambda home: plain(home), "not executable (chmod +x)"),
        (
            lambda home: fake(home, version="9.2.4"),
            "is QEMU 9.2.4; device state over multifd came with 10.0: on",
        ),
        (lambda home: fake(home, version="nightly"), "--version says QEMU emulator version nightly"),
        (lambda _: "/bin/true", "/bin/true is no QEMU of any release"),
        (lambda home: silent(home), "--version says nothing"),
        (lambda home: broken(home), "cannot be run: "),
    ],
)
def test_a_binary_that_will_not_do(
    make: Callable[[Path], str],
    sentence: str,
    source: str,
    target: str,
    home: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = run(make(home), capsys, source, target)
    assert said.startswith("vfmig: ")
    assert sentence in said
    assert not (home / "out").exists()


def plain(home: Path) -> str:
    """A file that is no program."""
    path = home / "plain"
    path.write_text("x")
    path.chmod(0o644)
    return str(path)


def silent(home: Path) -> str:
    """A program that has nothing to say."""
    path = home / "silent"
    path.write_text("#!/bin/sh\nexit 1\n")
    path.chmod(0o755)
    return str(path)


def broken(home: Path) -> str:
    """A program whose interpreter is not there."""
    path = home / "broken"
    path.write_text("#!/nowhere/sh\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_qemu_without_vfio(
    source: str, target: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "-device vfio-pci,id=vf0: 'vfio-pci' is not a valid device model name"
    said = run(fake(home, f'echo "qemu: {words}" >&2', "exit 1"), capsys, source, target)
    assert ": QEMU exited with 1 at start: this QEMU is built" in said
    assert "built without VFIO; take another: on Debian 13: apt install" in said
    assert f"output: qemu: {words}" in said


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["exit 3"], "QEMU exited with 3 at start"),
        (["exit 0"], "QEMU exited with 0 at start"),
        (["kill -SEGV $$"], "QEMU was killed by signal 11 at start"),
        (["echo last words; exit 1"], "output: last words"),
        (["echo \"Parameter 'qom-type' does not accept value 'iommufd'\"; exit 1"], "built without iommufd"),
        (["echo could not load PC BIOS; exit 1"], "apt install seabios"),
        (["echo Could not access KVM kernel module: Permission denied; exit 1"], "join the group kvm"),
    ],
)
def test_a_qemu_that_dies_at_start(
    lines: list[str], sentence: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = run(fake(home, *lines), capsys)
    assert sentence in said
    assert "command: " in said


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_qmp_socket_that_never_comes(
    source: str, target: str, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu, "START_SECONDS_MAX", 2.0)
    said = run(fake(home, "echo waiting", f"exec tail -f {home}/fake-qemu"), capsys, source, target)
    assert "QMP socket did not come within 2 s: is" in said
    assert "output: waiting" in said


@pytest.mark.parametrize(
    ("confined", "sentence"),
    [
        (FEW_FILES, "the hard limit of open files is 260, too low to reserve"),
        (LISTENED, "this process tree already has a listener for seccomp notifications"),
        (WITHOUT_MEMORY, "the memory of a process that we started cannot be had; allow it: sysctl"),
    ],
)
def test_a_machine_that_lends_nothing(confined: list[str], sentence: str, home: Path) -> None:
    """With a real QEMU, that it has all it needs but for one thing."""
    command = [sys.executable, "-c", "from verifier.cli import main; main()", "run", "--source", "qemu"]
    done = subprocess.run(
        [*confined, *command, "--target", "qemu", *SMALL, "--vfs", "2", "-o", "out"],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("vfmig: the ")
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("option", ["-incoming", "-serial"])
def test_a_port_in_use(option: str, home: Path) -> None:
    """Of the real QEMU: that is the one whose words are looked for."""
    assert home.is_dir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"tcp:127.0.0.1:{taken.getsockname()[1]}"
        words = address if option == "-incoming" else f"{address},server=on,wait=off"
        arguments = ["-nodefaults", "-display", "none", "-S", option, words]
        with pytest.raises(QemuError, match="another program has that port"), Qemu(find_qemu(), arguments):
            pass


def test_the_real_qemus_words_for_what_it_has_not(home: Path) -> None:
    """A release that has no such property says so in the words that we look for, those of a device aside."""
    assert home.is_dir()
    for option, remedy in (
        (["-machine", "pc-i440fx-99.1"], "take a --machine that this release has"),
        (["-bios", "/nowhere/bios"], "apt install seabios"),
        (["-m", "900T"], "not enough memory for the guest"),
    ):
        arguments = ["-nodefaults", "-display", "none", "-S", *option]
        with pytest.raises(QemuError, match=remedy), Qemu(find_qemu(), arguments):
            pass


@pytest.mark.usefixtures("home")
def test_a_qemu_that_answers_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["-machine", "none", "-nodefaults", "-display", "none"]
    with Qemu(find_qemu(), arguments) as hung:
        os.kill(hung.pid, signal.SIGSTOP)
        monkeypatch.setattr(Qemu, "answer_s", 0.2)
        with pytest.raises(QemuError, match=r"has not answered query-status within 0\.2 s"):
            hung.execute("query-status")


@pytest.mark.usefixtures("home")
def test_the_events_of_a_qemu_are_kept_to_its_last(tmp_path: Path) -> None:
    path = tmp_path / "source.qmp.jsonl"
    with Qemu(find_qemu(), ["-machine", "none", "-nodefaults", "-display", "none"], events=path) as qemu:
        for command in ("stop", "cont"):
            qemu.execute(command)
        assert qemu.quit() == 0
    assert [said.line.event for said in read_events(path) if isinstance(said.line, QmpEvent)] == [
        "STOP",
        "RESUME",
        "SHUTDOWN",
    ]
    assert not qemu.events_lost


@pytest.mark.usefixtures("home")
def test_events_that_find_the_disk_full_are_told_and_end_nothing() -> None:
    arguments = ["-machine", "none", "-nodefaults", "-display", "none"]
    with Qemu(find_qemu(), arguments, events=Path("/dev/full")) as qemu:
        for command in ("stop", "cont"):
            qemu.execute(command)
        assert qemu.events_lost == "QMP's events could not be written: No space left on device"
        assert qemu.execute("query-status")["running"]


def test_called_off_while_a_machine_is_recorded(home: Path) -> None:
    """A mock learns the machine from a QEMU first; that, too, can be called off."""
    cancel = Cancel()
    cancel.cancel()
    config = MigrationConfig(vfs=1, state_bytes=1 << 20, profile="unlimited")
    pair = Pair(target=Vm(binary=find_qemu()))
    with pytest.raises(CancelledError, match="while the machine was recorded"):
        run_migration(config, home / "out", cancel=cancel, pair=pair)


@pytest.mark.parametrize("crashes", [1, 1000])
def test_a_qemu_that_crashes_while_its_machine_is_recorded(
    home: Path, monkeypatch: pytest.MonkeyPatch, crashes: int
) -> None:
    """It is asked again, but not for ever, and then its own last words are told."""
    begun: list[QemuEnd] = []
    execute_before = Qemu.execute

    def crash(self: Qemu, command: str, **arguments: Any) -> Any:
        if command == "query-migrate" and len(begun) <= crashes:
            os.kill(self.pid, signal.SIGABRT)
        return execute_before(self, command, **arguments)

    def begin(self: QemuEnd, *arguments: Any, **named: Any) -> None:
        begun.append(self)
        end_before(self, *arguments, **named)

    end_before = QemuEnd.__init__
    monkeypatch.setattr(QemuEnd, "__init__", begin)
    monkeypatch.setattr(Qemu, "execute", crash)
    template = home / "template"
    config = MigrationConfig(vfs=1, channels=0, transfer="main", ram_bytes=1 << 20, idle_timeout_s=2.0)
    if crashes == 1:
        record_template(config, Vm(binary="qemu-system-x86_64"), template, Cancel())
        assert template.exists()
        assert len(begun) == 2
    else:
        with pytest.raises(QemuError, match=r"could not be recorded.*QEMU ended \(signal 6\)"):
            record_template(config, Vm(binary="qemu-system-x86_64"), template, Cancel())
        assert len(begun) > 2


@pytest.mark.parametrize("looks", [5, 1_000_000])
def test_a_source_is_asked_until_it_has_made_up_its_mind(
    home: Path, monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    """For a moment after it said "failed" it is in finish-migrate, whether its VM runs again or not."""
    execute_before = Qemu.execute
    answers: list[dict[str, Any]] = []

    def execute(self: Qemu, command: str, **arguments: Any) -> Any:
        answer = execute_before(self, command, **arguments)
        if command == "query-status":
            answers.append(answer)
            if len(answers) <= looks:
                return {"running": False, "status": "finish-migrate"}
        return answer

    monkeypatch.setattr(Qemu, "execute", execute)
    monkeypatch.setattr(qemu_end, "_RUNS_AGAIN_S", 60.0 if looks == 5 else 0.1)
    # Without multifd, where QEMU 10.0 aborts now and then when a migration fails.
    config = MigrationConfig(
        vfs=1,
        state_bytes=1 << 20,
        profile="unlimited",
        channels=0,
        transfer="main",
        faults=("source.vf0.save:eio",),
    )
    vm = Vm(binary=find_qemu())
    outcome = run_migration(config, home / "out", pair=Pair(source=vm, target=vm))
    runs = looks == 5
    assert (outcome.outcome, outcome.source.outcome) == ("failed-clean" if runs else "lost", "failed")
    assert outcome.source.runs is runs
    assert outcome.source.run_state == ("running" if runs else "finish-migrate")


def test_a_relay_that_cannot_begin_ends_the_run(home: Path) -> None:
    (home / "out" / "capture.pcapng").mkdir(parents=True)
    config = MigrationConfig(vfs=1, state_bytes=1 << 20, profile="unlimited")
    vm = Vm(binary=find_qemu())
    with pytest.raises(VfmigError, match="the relay could not begin"):
        run_migration(config, home / "out", pair=Pair(source=vm, target=vm, relay=True))


def test_ram_that_cannot_be_kept_is_no_failed_migration(home: Path) -> None:
    """A full disk, say: it is the evidence that lacks something, not the VM."""
    for role in ("source", "target"):
        (home / "out" / f"{role}.pci.json").mkdir(parents=True)
    config = MigrationConfig(vfs=1, state_bytes=1 << 20, profile="unlimited")
    vm = Vm(binary=find_qemu(), keep_state=True)
    outcome = run_migration(config, home / "out", pair=Pair(source=vm, target=vm))
    assert outcome.outcome == "completed"
    for end in (outcome.source, outcome.target):
        assert end.complaint.startswith("what the guest has could not be kept: ")
    assert not list((home / "out").glob("*.core"))
