# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU process with its QMP socket, as a context manager that leaves nothing running."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from qemu.qmp import ConnectError, ExecuteError, QMPClient

from mockdev.errors import VfmigError

START_SECONDS_MAX = 20.0
BINARY = "qemu-system-x86_64"


class QemuError(VfmigError):
    """A QEMU that could not be started, died, or refused a command; the message holds what it printed."""

    environment = True


def find_qemu(path: str | None = None) -> str:
    """The QEMU binary to use. QemuError when there is none."""
    found = shutil.which(path or BINARY)
    if found is None:
        raise QemuError(f"{path or BINARY} is not installed; on Debian: apt install qemu-system-x86")
    return found


class Qemu:
    """One QEMU, started with `arguments` and a QMP socket of its own.

    Leaving the block ends the process (SIGKILL if it must be) and removes its folder. Source of the
    protocol: QEMU docs/interop/qmp-spec.
    """

    def __init__(self, binary: str, arguments: Sequence[str]) -> None:
        self._folder = tempfile.mkdtemp(prefix="vfmig-qemu-")
        self._socket = os.path.join(self._folder, "qmp")
        self._log = Path(self._folder, "log")
        self.command = [binary, *arguments, "-qmp", f"unix:{self._socket},server=on,wait=off"]
        self._loop = asyncio.new_event_loop()
        self._client = QMPClient("vfmig")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run one QMP command (arguments with _ for -) and return its answer. QemuError when refused."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        try:
            return self._loop.run_until_complete(self._client.execute(command, named))
        except ExecuteError as error:
            raise QemuError(f"QEMU refused {command} {named}: {error}") from None
        except Exception as error:
            raise self._failure(f"QMP broke off during {command}: {error}") from error

    def cpu_s(self) -> float:
        """CPU seconds the process has used, all threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _failure(self, what: str) -> QemuError:
        printed = self._log.read_text(errors="replace").strip()[-2000:]
        return QemuError(f"{what}\n  command: {shlex.join(self.command)}\n  output: {printed or '(none)'}")

    def _connect(self) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            code = self._process.poll()
            if code is not None:
                raise self._failure(f"QEMU exited with {code} at start")
            try:
                if os.path.exists(self._socket):
                    self._loop.run_until_complete(self._client.connect(self._socket))
                    return
            except ConnectError:
                pass  # the socket exists a moment before QEMU listens on it
            if time.monotonic() > deadline:
                raise self._failure(f"QEMU's QMP socket did not come within {START_SECONDS_MAX:.0f} s")
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
        with contextlib.suppress(Exception):
            self._loop.run_until_complete(self._client.disconnect())
        self._loop.close()
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
