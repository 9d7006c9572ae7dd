# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU process with its QMP socket, as a context manager that leaves nothing running."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import msgspec
from qemu.qmp import ConnectError, ExecuteError, QMPClient, Runstate

import mockdev
from mockdev.attach.config import AttachConfig
from mockdev.errors import VfmigError

START_SECONDS_MAX = 20.0
BINARY = "qemu-system-x86_64"
INSTALL = (
    "on Debian 13: apt install qemu-system-x86; on Debian 12, with bookworm-backports among the apt sources: "
    "apt install -t bookworm-backports qemu-system-x86"
)
ALLOW_MEMORY = "sysctl kernel.yama.ptrace_scope=1 (as root), or a container with --cap-add SYS_PTRACE"
# What a QEMU may print at its end, as an expression, and what to do about it; the first that is found counts.
_REMEDIES = (
    (
        "'vfio-pci' is not a valid device model name",
        f"this QEMU is built without VFIO; take another: {INSTALL}",
    ),
    ("does not accept value 'iommufd'", f"this QEMU is built without iommufd; take another: {INSTALL}"),
    (
        "x-migration-max-queued-buffers-size' not found",
        "this release has no bound on queued buffers: leave out --queue-cap, or take QEMU 11.1",
    ),
    (
        "Address already in use",
        "another program has that port: leave it to the kernel (port 0), or name another",
    ),
    ("cannot set up guest memory", "there is not enough memory for the guest: take a smaller --ram"),
    (
        r"to iommufd=\d+: Operation not permitted",
        f"the memory of a process that we started cannot be had; allow it: {ALLOW_MEMORY}",
    ),
    ("could not load PC BIOS", "its firmware is not installed; on Debian: apt install seabios"),
    (
        "Could not access KVM",
        "KVM cannot be had: take --accel tcg, or join the group kvm (adduser $USER kvm)",
    ),
    ("unsupported machine type", "take a --machine that this release has (its -machine help lists them)"),
)
_QUIT_S = 10.0
_LINE_BYTES_MAX = 1 << 16


class QemuError(VfmigError):
    """A QEMU that could not be started, died, or refused a command; the message holds what it printed."""

    environment = True


def find_qemu(path: str | None = None) -> str:
    """The QEMU binary to use. QemuError when there is none."""
    wanted = path or BINARY
    found = shutil.which(wanted)
    if found is not None:
        return found
    if os.sep not in wanted:
        raise QemuError(f"{wanted} is not installed; {INSTALL}")
    if not os.path.exists(wanted):
        raise QemuError(f"there is no {wanted}; give the path of a {BINARY}, or install one: {INSTALL}")
    raise QemuError(f"{wanted} is no program that we may run: not executable (chmod +x), or no file")


@lru_cache
def qemu_version(binary: str) -> tuple[int, int, int]:
    """The release of a QEMU binary. QemuError when it is none."""
    try:
        done = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=START_SECONDS_MAX
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise QemuError(f"{binary} cannot be run: {error}") from None
    match = re.search(r"version (\d+)\.(\d+)\.(\d+)", done.stdout)
    if match is None:
        said = (done.stdout + done.stderr).strip().partition("\n")[0][:200]
        raise QemuError(f"{binary} is no QEMU of any release; --version says {said or 'nothing'}")
    major, minor, micro = map(int, match.groups())
    return major, minor, micro


class Qemu:
    """One QEMU, started with `arguments` and a QMP socket of its own.

    lend: mock devices for it, whose descriptors are named in `arguments` (its own command is not used); the
    process is then started by a supervisor, which does not outlive us, nor QEMU the supervisor. inside: words
    before the supervisor's command, to have both in a namespace, say. with_qtest: with a qtest socket, too.
    events: a file for the events that QMP brings, one a line as QEMU sends them. Leaving the block ends the
    process (SIGKILL if it must be) and removes its folder. Source: QEMU docs/interop/qmp-spec.
    """

    supervisor: ClassVar[Sequence[str]] = (sys.executable, "-m", "mockdev.attach.supervisor")
    answer_s: ClassVar[float] = 300.0  # to a QMP command: a large dump takes long, a hung QEMU for ever

    def __init__(
        self,
        binary: str,
        arguments: Sequence[str],
        lend: AttachConfig | None = None,
        inside: Sequence[str] = (),
        *,
        with_qtest: bool = False,
        events: Path | None = None,
    ) -> None:
        self.events_lost = ""  # why not all events are in the file, "" when they are
        self._events = events
        self._folder = tempfile.mkdtemp(prefix="vfmig-qemu-")
        self._socket = os.path.join(self._folder, "qmp")
        self._log = Path(self._folder, "log")
        self.command = [binary, *arguments, "-qmp", f"unix:{self._socket},server=on,wait=off"]
        self.qtest = os.path.join(self._folder, "qtest")
        if with_qtest:
            self.command += ["-qtest", f"unix:{self.qtest},server=on,wait=off", "-qtest-log", "none"]
        self._loop = asyncio.new_event_loop()
        self._client = QMPClient("vfmig")
        self._lent = lend is not None
        self.control = os.path.join(self._folder, "control")
        try:
            self._process = self._begin() if lend is None else self._supervise(lend, inside)
        except BaseException:
            self._loop.close()
            shutil.rmtree(self._folder, ignore_errors=True)
            raise
        self._pid = self._process.pid if lend is None else 0  # else the supervisor tells it

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._pid

    @property
    def ended(self) -> int | None:
        """The exit status, -n for signal n; None while it runs."""
        status = self._process.poll()
        return 128 - status if self._lent and status is not None and status > 128 else status

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run one QMP command (arguments with _ for -) and return its answer. QemuError when refused."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        try:
            answer = asyncio.wait_for(self._client.execute(command, named), self.answer_s)
            return self._loop.run_until_complete(answer)
        except TimeoutError:
            raise self._failure(f"QEMU has not answered {command} within {self.answer_s:g} s") from None
        except ExecuteError as error:
            raise QemuError(f"QEMU refused {command} {named}: {error}") from None
        except Exception as error:
            raise self._failure(f"QMP broke off during {command}: {error}") from error
        finally:
            self._keep_events()

    def cpu_s(self) -> float:
        """CPU seconds the process has used, all threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def printed(self) -> str:
        """The end of what it has printed."""
        with contextlib.suppress(OSError):
            return self._log.read_text(errors="replace").strip()[-2000:]
        return ""

    def wait(self, seconds: float) -> int | None:
        """The exit status once it has ended, or None when it has not within `seconds`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self.ended

    def kill(self) -> None:
        """End it at once, from any thread."""
        self._process.kill()

    def quit(self) -> int:
        """Have it end by itself, within some seconds; the exit status, or that of being killed."""
        with contextlib.suppress(Exception):  # it may be dead or dying already
            self._loop.run_until_complete(asyncio.wait_for(self._client.execute("quit"), _QUIT_S))
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_QUIT_S)
        with contextlib.suppress(Exception):  # its last events
            self._loop.run_until_complete(asyncio.wait_for(self._disconnected(), _QUIT_S))
        self.close()
        ended = self.ended
        assert ended is not None
        return ended

    async def _disconnected(self) -> None:
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()

    def _keep_events(self) -> None:
        """Put the events that have come into their file. A full disk ends the file, not the migration."""
        came = self._client.events.clear()
        if self._events is None or self.events_lost or not came:
            return
        try:
            with self._events.open("ab") as file:
                file.writelines(bytes(event).strip() + b"\n" for event in came)
        except OSError as error:
            self.events_lost = f"QMP's events could not be written: {error.strerror}"

    def _begin(self) -> subprocess.Popen[bytes]:
        with self._log.open("wb") as log:
            return subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def _supervise(self, lend: AttachConfig, inside: Sequence[str]) -> subprocess.Popen[bytes]:
        environment = dict(os.environ)
        package = str(Path(mockdev.__file__).parent.parent)  # also where it is not installed
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package, environment.get("PYTHONPATH"))))
        environment["TMPDIR"] = self._folder  # what it makes there goes with the folder, even if it is killed
        process = subprocess.Popen(
            [*inside, *self.supervisor],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            process_group=0,
        )
        assert process.stdin is not None
        config = msgspec.structs.replace(
            lend,
            command=tuple(self.command),
            control=self.control,
            log=str(self._log),
            parent=os.getpid(),
            scratch=self._folder,
        )
        with contextlib.suppress(OSError):  # it has died: its output will say why
            process.stdin.write(msgspec.json.encode(config) + b"\n")
            process.stdin.flush()
        return process

    def _started(self, deadline: float) -> None:
        """Wait for the supervisor's word that QEMU runs."""
        assert self._process.stdout is not None
        said: dict[str, Any] = {}
        if select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            with contextlib.suppress(ValueError):
                said = json.loads(self._process.stdout.readline(_LINE_BYTES_MAX) or b"{}")
        if said.get("event") == "started":
            self._pid = said["pid"]
            return
        why = said.get("error")
        if why is None:
            self._process.kill()
            assert self._process.stderr is not None
            lines = self._process.stderr.read().decode(errors="replace").strip().splitlines()
            why = f"its supervisor ended without a word: {lines[-1] if lines else '(no output)'}"
        raise self._failure(f"QEMU was not started: {why}")

    def _failure(self, what: str) -> QemuError:
        printed = self.printed
        remedy = next((f": {remedy}" for sign, remedy in _REMEDIES if re.search(sign, printed)), "")
        return QemuError(
            f"{what}{remedy}\n  command: {shlex.join(self.command)}\n  output: {printed or '(none)'}"
        )

    def _connect(self) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        if self._lent:
            self._started(deadline)
        while True:
            status = self.ended
            if status is not None:
                how = f"exited with {status}" if status >= 0 else f"was killed by signal {-status}"
                raise self._failure(f"QEMU {how} at start")
            try:
                if os.path.exists(self._socket):
                    self._loop.run_until_complete(self._client.connect(self._socket))
                    return
            except ConnectError:
                pass  # the socket exists a moment before QEMU listens on it
            if time.monotonic() > deadline:
                raise self._failure(
                    f"QEMU's QMP socket did not come within {START_SECONDS_MAX:.0f} s: is "
                    f"{self.command[0]} a QEMU, and not a script that waits?"
                )
            time.sleep(0.005)

    def __enter__(self) -> Qemu:
        try:
            self._connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process and remove what it left."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(Exception):
            self._loop.run_until_complete(self._client.disconnect())
        self._keep_events()
        self._loop.close()
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        shutil.rmtree(self._folder, ignore_errors=True)
