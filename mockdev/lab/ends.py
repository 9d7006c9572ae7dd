# SPDX-License-Identifier: GPL-2.0-or-later
"""The two kinds of end of our own: an endpoint in a process of its own, or in a thread of this one."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

import mockdev
from mockdev.errors import VfmigError, describe_error
from mockdev.lab.outcome import EndpointStatus
from mockdev.runtime.config import EndpointConfig
from mockdev.runtime.session import Result
from mockdev.runtime.source import Source
from mockdev.runtime.target import Target
from mockdev.runtime.transports import MemoryNet

Progress = dict[str, Any]
Reports = queue.SimpleQueue[tuple[str, Progress]]  # (role, message); "end" is an end's last one


class End(Protocol):
    """A running endpoint. status: None until it has ended.

    tell: where the source is to connect. cancel: call it off. release: what became of both ends is known, and
    it may end. die: kill it, as a fault. kill: kill it, for it does not end. close: wait for its end.
    """

    status: EndpointStatus | None

    def tell(self, address: str) -> None: ...
    def cancel(self) -> None: ...
    def release(self) -> None: ...
    def die(self) -> None: ...
    def kill(self) -> None: ...
    def close(self) -> None: ...


class ProcessEnd:
    """An endpoint in a process of its own. inside: what goes before its command: in a namespace, say."""

    def __init__(self, config: EndpointConfig, reports: Reports, inside: Sequence[str] = ()) -> None:
        self.status: EndpointStatus | None = None
        self._role = config.role
        self._reports = reports
        self._result: Progress | None = None
        self._killed = False
        self._cancelled = False
        self._log = Path(config.folder) / f"{config.role}.log"
        environment = dict(os.environ)
        package = str(Path(mockdev.__file__).parent.parent)  # also where it is not installed
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package, environment.get("PYTHONPATH"))))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*inside, sys.executable, "-m", "mockdev.lab.endpoint", config.role],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                process_group=0,  # Ctrl-C comes to us, and we end it in order
            )
        self.pid = self._process.pid
        self._write(msgspec.json.encode(config))
        self._reader = threading.Thread(target=self._read, name=f"{config.role} output", daemon=True)
        self._reader.start()

    def tell(self, address: str) -> None:
        """Where the source is to connect."""
        self._write(json.dumps(address).encode())

    def release(self) -> None:
        """It ends by itself."""

    def cancel(self) -> None:
        """SIGTERM, unless it has ended."""
        self._cancelled = True
        self._signal(signal.SIGTERM)

    def die(self) -> None:
        """SIGKILL, as a fault: it has crashed."""
        self._signal(signal.SIGKILL)

    def kill(self) -> None:
        """SIGKILL, unless it has ended."""
        self._killed = True
        self._signal(signal.SIGKILL)

    def close(self) -> None:
        """Kill it if need be, and wait for its end."""
        if self.status is None:
            self.kill()
        self._reader.join()
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        with contextlib.suppress(OSError):
            if self._log.stat().st_size == 0:
                self._log.unlink()

    def _signal(self, number: signal.Signals) -> None:
        if self.status is None:
            self._process.send_signal(number)  # does nothing once the process has been waited for

    def _write(self, line: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has died: its end will be read
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                with contextlib.suppress(ValueError):
                    report = json.loads(line)
                    if report.get("event") == "result":
                        self._result = report
                    self._reports.put((self._role, report))
        self.status = self._judge(self._process.wait())
        self._reports.put((self._role, {"event": "end"}))

    def _judge(self, exit_status: int) -> EndpointStatus:
        result = self._result
        if result is None:
            outcome = "killed" if self._killed else "crashed"
            if self._cancelled and exit_status == -signal.SIGTERM:  # before it could listen for that
                outcome = "cancelled"
            return EndpointStatus(
                outcome=outcome, error=self._last_words(exit_status), exit_status=exit_status
            )
        return EndpointStatus(
            outcome=result["outcome"],
            error=result["error"],
            runs=result.get("runs", False),
            moved_bytes=result.get("moved_bytes", 0),
            cpu_s=result.get("cpu_ns", 0) / 1e9,
            complaint=result.get("complaint", ""),
            exit_status=exit_status,
        )

    def _last_words(self, exit_status: int) -> str:
        how = f"exit status {exit_status}"
        if exit_status < 0:
            how = f"signal {signal.Signals(-exit_status).name}"
        with contextlib.suppress(OSError):
            lines = self._log.read_text(errors="replace").strip().splitlines()
            if lines:
                return f"the {self._role} ended without a word ({how}): {lines[-1][:500]}"
        return f"the {self._role} ended without a word ({how})"


class InsideEnd:
    """An endpoint in a thread of this process."""

    def __init__(self, config: EndpointConfig, net: MemoryNet, reports: Reports) -> None:
        self.status: EndpointStatus | None = None
        self._role = config.role
        self._reports = reports
        self._endpoint = Source(config, net) if config.role == "source" else Target(config, net)
        self._thread = threading.Thread(target=self._run, name=config.role, daemon=True)
        self._thread.start()

    def tell(self, address: str) -> None:
        """It knows the way."""

    def release(self) -> None:
        """It ends by itself."""

    def cancel(self) -> None:
        """Call it off."""
        self._endpoint.session.cancel()

    def die(self) -> None:
        """A thread cannot be killed."""
        raise VfmigError("an endpoint within this process cannot die alone: take another --transport")

    def kill(self) -> None:
        """There is nothing harder than to call it off."""
        self.cancel()

    def close(self) -> None:
        """Wait for its end."""
        if self.status is None:
            self.cancel()
        self._thread.join()

    def _run(self) -> None:
        try:
            result = self._endpoint.run()
        except Exception as error:  # also a defect of ours must not leave the run waiting
            result = Result("failed", describe_error(error), False, 0, 0, "")
        self.status = EndpointStatus(
            outcome=result.outcome,
            error=result.error,
            runs=result.runs,
            moved_bytes=result.moved_bytes,
            cpu_s=result.cpu_ns / 1e9,
            complaint=result.complaint,
        )
        self._reports.put((self._role, {"event": "end"}))
