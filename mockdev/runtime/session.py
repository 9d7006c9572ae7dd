# SPDX-License-Identifier: GPL-2.0-or-later
"""What source and target have in common: journal, capture, connections, threads, and how it all ends."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from mockdev.clock import Clock, cpu_ns
from mockdev.errors import CancelledError, RemoteProtocolError, VfmigError, describe_error
from mockdev.journal import Begin, Connected, End, Journal, Mark, failure_line
from mockdev.runtime.config import EndpointConfig
from mockdev.runtime.tap import Tap
from mockdev.runtime.transports import Activity, Connection, describe
from mockdev.threads import ThreadGroup
from mockdev.wire.channel import Course, Table

_LOOK_S = 0.25  # how often a waiting thread looks whether all has gone silent


class StoppedError(VfmigError):
    """A thread stops because another one failed; never the cause."""


class Result(NamedTuple):
    """How an endpoint ended. outcome: completed, failed or cancelled; error: why, "" when completed.

    runs: whether the VM may run on this side. moved_bytes: over all connections, both directions.
    cpu_ns: CPU time of the process from the first connection to the end of the migration.
    complaint: "" or why evidence (capture, journal) is not whole.
    """

    outcome: str
    error: str
    runs: bool
    moved_bytes: int
    cpu_ns: int
    complaint: str


class Session:
    """One endpoint's run. `body` in `run` is its main thread; `cancel` may come from any other.

    stopped: set when threads must come to an end. at_stop: called then, once, to wake whoever waits.
    """

    def __init__(self, config: EndpointConfig) -> None:
        config.check()
        folder = Path(config.folder)
        self.config = config
        self.migration = config.migration
        self.clock = Clock(config.clock_offset_ns)
        self.journal = Journal(folder / f"{config.role}.jsonl")
        captures = config.migration.capture if config.migration.capture_at == config.role else "none"
        self.tap = Tap(folder / "capture.pcapng", config.role, captures, self.clock)
        self.activity = Activity(self.clock, config.migration.idle_timeout_s)
        self.stopped = threading.Event()
        self.at_stop: list[Callable[[], None]] = []
        self.phase = "set-up"
        self.group = ThreadGroup(self._stop)
        self._connections: list[Connection] = []
        self._lock = threading.Lock()
        self._committed = False
        self._cpu_start_ns = 0
        self._cpu_end_ns = 0
        self.journal.write(
            Begin(
                t=self.clock.now_ns(),
                role=config.role,
                # What a QEMU's machine has is not ours to say.
                uuid="" if config.migration.peer == "qemu" else config.migration.uuid,
                queue_cap=config.migration.queue_cap_bytes,
                config=msgspec.to_builtins(config.migration),
            )
        )

    # -- connections ---------------------------------------------------------------------------------

    def adopt(self, sock: socket.socket, *, accepted: bool) -> Connection:
        """A new connection, captured if anything is, and ended when the session stops."""
        connection = Connection(sock, self.activity, self.clock)
        with self._lock:
            if not self._connections:
                self._cpu_start_ns = cpu_ns()
            self._connections.append(connection)
        self.tap.watch(connection, accepted=accepted)
        if self.stopped.is_set():
            connection.shutdown()
        return connection

    def connected(self, connection: Connection, channel: str) -> None:
        """It is known which channel a connection is: "main" or its number."""
        connection.name = "main" if channel == "main" else f"channel {channel}"
        local, peer = describe(connection.local), describe(connection.peer)
        self.journal.write(Connected(t=self.clock.now_ns(), channel=channel, local=local, peer=peer))

    @property
    def moved_bytes(self) -> int:
        """Bytes that all connections moved so far."""
        return sum(c.sent_bytes + c.received_bytes for c in self._connections)

    def remote_course(self, table: Table, connection: Connection) -> Course:
        """The peer's way through a table of what may follow what."""
        return Course(table, connection.name, local=False)

    # -- what threads say and ask --------------------------------------------------------------------

    def mark(self, name: str, value: int = 0) -> None:
        """Journal a step."""
        self.journal.write(Mark(t=self.clock.now_ns(), name=name, value=value))

    def check(self) -> None:
        """StoppedError when threads must come to an end."""
        if self.stopped.is_set():
            raise StoppedError("stopped")

    def sleep_until(self, until_ns: int) -> None:
        """Wait for a time; StoppedError as soon as the session stops."""
        left_s = (until_ns - self.clock.now_ns()) / 1e9
        if left_s > 0 and self.stopped.wait(left_s):
            raise StoppedError("stopped")
        self.activity.touch()

    def wait_for(
        self, condition: threading.Condition, done: Callable[[], bool], late: Callable[[], str]
    ) -> None:
        """Wait on a held condition until `done`; errors as wait_once."""
        while not done():
            self.wait_once(condition, late)

    def wait_once(self, condition: threading.Condition, late: Callable[[], str]) -> None:
        """Wait on a held condition until it is notified, or a moment has passed.

        StoppedError, or RemoteProtocolError with the sentence `late` when all was silent for too long.
        """
        self.check()
        if self.activity.silent:
            raise RemoteProtocolError(self.activity.over(late()), field="deadline")
        condition.wait(_LOOK_S)
        self.check()

    def commit(self) -> None:
        """From here on a cancel comes too late. CancelledError or StoppedError when one came before."""
        with self._lock:
            self.check()
            self._committed = True

    def settle(self) -> None:
        """It has ended, one way or the other: one may wait again, and no further cancel breaks in."""
        with self._lock:
            self._committed = True
            self.stopped.clear()

    # -- the run -------------------------------------------------------------------------------------

    def cancel(self, why: str = "cancelled by the user") -> None:
        """Call the migration off, unless it is complete."""
        with self._lock:
            if self._committed:
                return
            self.stopped.set()
        self.group.stop(CancelledError(why))

    def run(self, body: Callable[[], None]) -> BaseException | None:
        """Run `body` and join all threads; None, or what ended the migration first."""
        try:
            with self.group:
                self.check()
                body()
        except BaseException as error:
            return self.group.errors[0] if self.group.errors else error
        finally:
            self.timed_end()
        return None

    def timed_end(self) -> None:
        """The migration is over; what follows costs no CPU of its account."""
        if not self._cpu_end_ns:
            self._cpu_end_ns = cpu_ns()

    def finish(self, cause: BaseException | None, *, runs: bool, complaint: str = "") -> Result:
        """Close everything, write the last lines; the result. complaint: what else is not whole."""
        for connection in self._connections:
            connection.close()
        self.tap.close()
        outcome = "completed"
        error = ""
        if cause is not None:
            outcome = "cancelled" if isinstance(cause, CancelledError) else "failed"
            error = describe_error(cause)
            self.journal.write(failure_line(self.clock.now_ns(), cause))
        cpu = self._cpu_end_ns - self._cpu_start_ns if self._cpu_start_ns else 0
        moved = self.moved_bytes
        self.journal.write(End(t=self.clock.now_ns(), outcome=outcome, runs=runs, bytes=moved, cpu_ns=cpu))
        complaint = "; ".join(filter(None, (complaint, self.tap.complaint, self.journal.lost)))
        self.journal.close()
        return Result(outcome, error, runs, moved, cpu, complaint)

    def _stop(self, _error: BaseException | None) -> None:
        self.stopped.set()
        with self._lock:
            connections = list(self._connections)
        for wake in self.at_stop:
            wake()
        for connection in connections:
            if self.config.role == "target" and connection.name == "main":
                connection.stop_reading()  # the last word, SHUT, is still to be said on it
            else:
                connection.shutdown()
