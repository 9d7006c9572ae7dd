# SPDX-License-Identifier: GPL-2.0-or-later
"""One endpoint as a process: `python -m mockdev.lab.endpoint source|target`.

It reads its EndpointConfig as one line of JSON from stdin and writes lines of JSON to stdout:

    {"event": "ready", "address": "127.0.0.1:40001"}        memory made; a target listens
    {"event": "progress", "phase": "precopy", "moved_bytes": 1048576}
    {"event": "result", "outcome": "completed", ...}          the fields of session.Result; the last line

A source without an address in its configuration takes it, as a JSON string, from a second line of stdin.
SIGTERM, SIGINT, the end of stdin and the death of the parent cancel the migration. Exit status: 0
completed, 1 failed, 2 wrong use, 3 could not begin, 130 cancelled.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import signal
import sys
import threading
from typing import Any

import msgspec

from mockdev.errors import VfmigError
from mockdev.runtime.config import EndpointConfig
from mockdev.runtime.session import Result, StoppedError
from mockdev.runtime.source import Source
from mockdev.runtime.target import Target

EXIT = {"completed": 0, "failed": 1, "cancelled": 130}
EXIT_USE = 2
EXIT_BEGIN = 3
_PROGRESS_S = 0.1
_PR_SET_PDEATHSIG = 1
_LINE_BYTES_MAX = 1 << 20


class _Process:
    """What happens to this process, in order: signals, the end of stdin, the endpoint's own steps."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._address: queue.SimpleQueue[str] = queue.SimpleQueue()

    def main(self, role: str) -> int:
        _die_with_parent()
        for number in (signal.SIGTERM, signal.SIGINT):
            # SimpleQueue.put may be called from a handler that interrupts anything, even another put.
            signal.signal(number, lambda number, _: self.events.put(("cancel", signal.Signals(number).name)))
        try:
            config = msgspec.json.decode(sys.stdin.buffer.readline(_LINE_BYTES_MAX), type=EndpointConfig)
            if config.role != role:
                raise VfmigError(f"the configuration is for a {config.role}")
            endpoint = Source(config) if config.role == "source" else Target(config)
        except (msgspec.MsgspecError, VfmigError, OSError) as error:
            _say("result", outcome="failed", error=str(error), begun=False)
            return EXIT_BEGIN
        threading.Thread(target=self._watch_stdin, name="stdin", daemon=True).start()
        worker = threading.Thread(target=self._work, args=(endpoint, config), name="endpoint", daemon=True)
        worker.start()
        return self._attend(endpoint)

    def _attend(self, endpoint: Source | Target) -> int:
        """Report until there is a result; hand cancellations on."""
        said = None
        while True:
            try:
                event, value = self.events.get(timeout=_PROGRESS_S)
            except queue.Empty:
                state = (endpoint.session.phase, endpoint.session.moved_bytes)
                if state != said:
                    said = state
                    _say("progress", phase=state[0], moved_bytes=state[1])
                continue
            if event == "cancel":
                self._address.put("")
                endpoint.session.cancel(f"cancelled by {value}")
            elif event == "ready":
                _say("ready", address=value)
            else:
                _say("result", **value._asdict())
                return EXIT[value.outcome]

    def _work(self, endpoint: Source | Target, config: EndpointConfig) -> None:
        try:
            result = self._migrate(endpoint, config)
        except Exception as error:  # a defect of ours: it must not leave the process waiting
            result = Result("failed", f"{type(error).__name__}: {error}", False, 0, 0, "")
        self.events.put(("result", result))

    def _migrate(self, endpoint: Source | Target, config: EndpointConfig) -> Result:
        with contextlib.suppress(StoppedError):  # called off meanwhile: `run` ends at once and says why
            endpoint.prepare()
        if isinstance(endpoint, Target):
            self.events.put(("ready", endpoint.address))
            return endpoint.run()
        self.events.put(("ready", ""))
        return endpoint.run(config.address or self._address.get())

    def _watch_stdin(self) -> None:
        line = sys.stdin.buffer.readline(_LINE_BYTES_MAX)
        if line:
            with contextlib.suppress(ValueError):
                self._address.put(str(json.loads(line)))
            while sys.stdin.buffer.readline(_LINE_BYTES_MAX):
                pass
        self.events.put(("cancel", "the end of its parent"))


def _die_with_parent() -> None:
    """Have the kernel send SIGTERM when the parent dies."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _say(event: str, **fields: object) -> None:
    line = json.dumps({"event": event, **fields}) + "\n"
    with contextlib.suppress(OSError):  # nobody reads any more: the journal has it all
        sys.stdout.write(line)
        sys.stdout.flush()


def main() -> None:
    """The process's entry."""
    if len(sys.argv) != 2 or sys.argv[1] not in ("source", "target"):
        print("use: python -m mockdev.lab.endpoint source|target", file=sys.stderr)
        sys.exit(EXIT_USE)
    status = _Process().main(sys.argv[1])
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  what is buffered for a closed pipe must not complain
    os._exit(status)  # daemon threads may sit in a read of stdin


if __name__ == "__main__":
    main()
