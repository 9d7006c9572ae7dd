# SPDX-License-Identifier: GPL-2.0-or-later
"""A relay between source and target, any two of them: it records what passes, and lets faults happen.

For each connection that it accepts it makes one to the target, and passes on bytes, the end of either
direction and resets, with bounded memory: what one end does not take is not taken from the other. It is a
process of its own, `python -m mockdev.lab.relay`, so that it has an interpreter for itself, can stand in
another network namespace, and ends when its run does, however that ends. `RelayProcess` starts one.

It reads its RelayConfig as one line of JSON from stdin and writes lines of JSON to stdout:

    {"event": "ready", "address": "127.0.0.1:40001"}
    {"event": "channel", "channel": "main", "local": "127.0.0.1:51000", "peer": "127.0.0.1:40001"}
    {"event": "switchover", "t": 1700000000000000000}           with watch_switchover
    {"event": "fault", "fault": "channel.3:close@10MiB", "channel": "channel 3", "offset": 10485760, "t": ...}
    {"event": "trouble", "message": "cannot connect to 127.0.0.1:5: Connection refused"}
    {"event": "result", "connections": 7, "moved_bytes": ..., "dropped": 0, "complaint": ""}   the last line

The end of stdin ends it once the connections have ended, or after a moment; SIGTERM, SIGINT and the death of
the parent at once. Exit status: 0, or 3 when it could not begin.

What is recorded is what the receiver is sent, just before it is; the ends of both directions of a connection
stand together where the second one came.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import msgspec
import xxhash

import mockdev
from mockdev.clock import Clock
from mockdev.errors import VfmigError
from mockdev.faultspec import parse
from mockdev.lab.passage import Buffer, Passage, Piece, Struck, Units
from mockdev.runtime.pcap_writer import Elided, PcapngWriter
from mockdev.runtime.pcap_writer import Tap as FlowWriter
from mockdev.runtime.transports import Listener, connect, describe, listen
from mockdev.wire.framer import multifd_channel
from mockdev.wire.frames import CommandItem, Frame, RamRecordItem, Syntax, VfioItem
from mockdev.wire.mainstream import main_channel
from mockdev.wire.returnpath import return_path
from mockdev.wire.structs import MULTIFD_INIT, MULTIFD_MAGIC, STREAM_MAGIC, Command

Report = Callable[[dict[str, Any]], None]

EXIT_BEGIN = 3
_BUFFER_BYTES = 256 << 10  # fits the caches
_ANSWER_BYTES = 16 << 10
_TICK_S = 0.1  # how often a blocked call looks whether its connection was broken off
_TIMED_TICK_S = 0.005  # ... while something waits for a time
_CONNECT_S = 10.0
_DRAIN_S = 5.0
_END_S = 10.0  # what the process gets to end after it was told to
_PR_SET_PDEATHSIG = 1
_LINE_BYTES_MAX = 1 << 20
_ELIDED_BYTES_MIN = 256  # as in runtime/tap.py
_ELIDED_BYTES_MAX = 4 << 20  # a longer payload has several digests
_MAIN_HEAD = STREAM_MAGIC.to_bytes(4, "big")
_CHANNEL_HEAD = MULTIFD_MAGIC.to_bytes(4, "big")


class RelayConfig(msgspec.Struct, frozen=True, kw_only=True):
    """target: where it connects. listen: where it listens, as in transports.listen; "": any port of loopback.

    capture: path of the file, "" for none; mode "full" or "headers". faults: as in faultspec.py; only those
    of channel.N, main and return-path are the relay's. watch_switchover: say when SWITCHOVER_START passes;
    a fault with a time makes it watch too.
    """

    target: str
    listen: str = ""
    transport: Literal["tcp", "unix"] = "tcp"
    capture: str = ""
    mode: Literal["full", "headers"] = "full"
    clock_offset_ns: int | None = None
    faults: tuple[str, ...] = ()
    watch_switchover: bool = False


class Relay:
    """The relay itself, in this process. VfmigError: it cannot listen, or the capture cannot be made.

    report: called with the events that the head of this file lists, from any thread.
    """

    def __init__(self, config: RelayConfig, report: Report) -> None:
        self.config = config
        self.clock = Clock(config.clock_offset_ns)
        self.faults = tuple(map(parse, config.faults))
        timed = any(fault.when is not None and fault.when.kind == "time" for fault in self.faults)
        self.watches = config.watch_switchover or timed
        self.report = report
        self.switched_ns: int | None = None
        self._listener: Listener = listen(config.transport, config.listen, 0)
        try:
            self.writer = PcapngWriter(config.capture, ["relay"]) if config.capture else None
        except VfmigError:
            self._listener.close()
            raise
        self.address = self._listener.address
        self._lock = threading.Lock()
        self._links: list[Link] = []
        self._stopped = False
        self._acceptor = threading.Thread(target=self._accept, name="relay accept", daemon=True)
        self._acceptor.start()

    def close(self, drain_s: float = 0.0) -> dict[str, Any]:
        """Accept no more; give connections `drain_s` to end, then break them off. The result's fields."""
        with self._lock:
            self._stopped = True
        self._listener.close()
        self._acceptor.join()
        end_ns = self.clock.now_ns() + int(drain_s * 1e9)
        for link in self._links:
            link.join(max(0.0, (end_ns - self.clock.now_ns()) / 1e9))
        for link in self._links:
            link.break_off()
        for link in self._links:
            link.join(None)
        if self.writer is not None:
            self.writer.close()
        return {
            "connections": len(self._links),
            "moved_bytes": sum(link.moved_bytes for link in self._links),
            "dropped": 0 if self.writer is None else self.writer.dropped,
            "complaint": "" if self.writer is None else self.writer.complaint,
        }

    def switched(self) -> None:
        """SWITCHOVER_START is passing."""
        with self._lock:
            first, self.switched_ns = self.switched_ns is None, self.clock.now_ns()
        if first:
            self.report({"event": "switchover", "t": self.switched_ns})

    def _accept(self) -> None:
        while not self._stopped:
            try:
                near = self._listener.accept()
            except OSError:
                return
            if near is not None:
                self._begin(near)

    def _begin(self, near: socket.socket) -> None:
        try:
            far = connect(self.config.transport, self.config.target, 0, _CONNECT_S)
        except VfmigError as error:
            self.report({"event": "trouble", "message": str(error)})
            _reset(near)
            near.close()
            return
        link = Link(self, near, far)
        with self._lock:
            self._links.append(link)
        link.start()


class Link:
    """One connection: `near` to the source, `far` to the target, and a thread for each direction."""

    def __init__(self, relay: Relay, near: socket.socket, far: socket.socket) -> None:
        self.relay = relay
        self.near, self.far = near, far
        self.name = "new connection"
        self.broken = threading.Event()
        self._lock = threading.Lock()
        self._running = 2
        for sock in (near, far):
            sock.setblocking(True)
            _tick(sock, _TICK_S)
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        source, here = near.getpeername(), near.getsockname()
        self.ends = _end_name(source), _end_name(here)
        self.flow: FlowWriter | None = None
        if relay.writer is not None:
            self.flow = relay.writer.connection(source, here, relay.clock.now_ns())
        self.there = Lane(self, near, far, sent=True)
        self.back = Lane(self, far, near, sent=False)
        self._threads = [
            threading.Thread(target=self._run, args=(lane,), name=f"relay {_end_name(source)}", daemon=True)
            for lane in (self.there, self.back)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def join(self, timeout_s: float | None) -> None:
        """Wait for its end."""
        for thread in self._threads:
            thread.join(timeout_s)

    @property
    def moved_bytes(self) -> int:
        """Bytes sent on, both ways."""
        return self.there.moved_bytes + self.back.moved_bytes

    def break_off(self) -> None:
        """End both directions now; both ends see a reset."""
        self.broken.set()
        for sock in (self.near, self.far):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RD)  # wakes a blocked receive and says nothing to the peer

    def close_ends(self, role: str) -> None:
        """Close the connection in order, towards one end ("source", "target") or both ("")."""
        for sock, end in ((self.near, "source"), (self.far, "target")):
            if role in ("", end):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def told(self, name: str) -> None:
        """It is known what it carries: "main", "channel 3", or something else."""
        self.name = name
        local, peer = self.ends
        self.relay.report({"event": "channel", "channel": name, "local": local, "peer": peer})
        if name == "main":
            self.there.expect("main", None, main_channel)
            self.back.expect("return-path", None, return_path)
        elif name.startswith("channel "):
            number = int(name.split()[1])
            self.there.expect("channel.N", number, partial(multifd_channel, name))

    def deafen(self) -> None:
        """A fault has closed an end of it: what still comes on the other one is thrown away."""
        self.there.deaf = self.back.deaf = True

    def _run(self, lane: Lane) -> None:
        try:
            lane.run()
        except _GoneError:
            pass  # what it still said is on its way back in the other lane, which then ends too
        except OSError:
            if not lane.deaf:
                self.break_off()
        except Exception as error:  # a defect of ours must not leave the ends waiting
            self.relay.report({"event": "trouble", "message": f"{type(error).__name__}: {error}"})
            self.break_off()
        finally:
            with self._lock:
                self._running -= 1
                last = self._running == 0
            if last:
                self._end()

    def _end(self) -> None:
        broken = self.broken.is_set()
        if self.flow is not None:
            self.flow.close(self.relay.clock.now_ns(), reset=broken)
        for sock in (self.near, self.far):
            if broken:
                _reset(sock)
            sock.close()


class _GoneError(Exception):
    """The receiver takes no more."""


class Lane:
    """One direction of a connection. sent: from source to target."""

    def __init__(self, link: Link, here: socket.socket, there: socket.socket, *, sent: bool) -> None:
        self.moved_bytes = 0
        self._link = link
        self._relay = link.relay
        self._here, self._there = here, there
        self._sent = sent
        self._name = ""
        self._passage: Passage | None = None
        self._recorder: Recorder | None = None
        self._watcher: Units | None = None
        self.deaf = False  # what still comes is thrown away
        if link.flow is not None:
            self._recorder = Recorder(link.flow.sent if sent else link.flow.received, link.relay.clock)

    def expect(self, place: str, number: int | None, syntax: Callable[[], Syntax]) -> None:
        """It is known what it carries."""
        self._name = place if number is None else f"channel {number}"
        faults = [f for f in self._relay.faults if (f.place, f.number) == (place, number)]
        if faults:
            passage = Passage(faults, syntax)
            if passage.timed:
                _tick(self._here, _TIMED_TICK_S)
            self._passage = passage
        if place == "main" and self._relay.watches:
            self._watcher = Units(syntax(), self._look)
        if self._recorder is not None and self._relay.config.mode == "headers":
            self._recorder.elide(syntax, all_payload=place == "channel.N")

    def run(self) -> None:
        """Pass on what comes until it ends. OSError: the sender broke off. _GoneError: see there."""
        if self._sent and not self._meet():
            return
        buffer = memoryview(bytearray(_BUFFER_BYTES if self._sent else _ANSWER_BYTES))
        while (size := self._receive(buffer)) is not None:
            if not size:
                self._end_stream()
                return
            self._pass_on(buffer[:size])

    # -- receiving -----------------------------------------------------------------------------------

    def _meet(self) -> bool:
        """Read what tells the channel, and pass it on; whether more may come.

        It is held back until then, so that faults from the first byte on can be told from those of others.
        """
        head = memoryview(bytearray(MULTIFD_INIT.size))
        have = 0
        while have < _enough(head[:have]):
            size = self._receive(head[have:])
            if size is None:
                return False
            have += size
            if not size:
                break
        found = bytes(head[:have])
        self._link.told(_channel(found))
        if found:
            self._pass_on(memoryview(found))
        if have < _enough(head[:have]):
            self._end_stream()
            return False
        return True

    def _receive(self, buffer: memoryview) -> int | None:
        """Bytes received, 0 at the end; None when the connection was broken off."""
        while not self._link.broken.is_set():
            try:
                size = self._here.recv_into(buffer)
            except BlockingIOError:
                self._look_at_time()
                continue
            return None if self._link.broken.is_set() else size
        return None

    def _look_at_time(self) -> None:
        if self._passage is not None and self._passage.timed:
            struck = self._passage.close_due(self._relay.clock.now_ns(), self._relay.switched_ns)
            if struck is not None:
                self._strike(struck)

    def _look(self, frame: Frame) -> None:
        if isinstance(frame, CommandItem) and frame.command == Command.SWITCHOVER_START:
            self._relay.switched()
            self._watcher = None

    # -- passing on ----------------------------------------------------------------------------------

    def _pass_on(self, data: memoryview) -> None:
        if self._watcher is not None:
            for _ in self._watcher.feed(data):
                pass
        passage = self._passage
        if passage is None or passage.idle:
            self._send(data)
        else:
            self._carry_out(passage.feed(data, self._relay.clock.now_ns(), self._relay.switched_ns))

    def _carry_out(self, steps: Iterable[Buffer | Struck]) -> None:
        for step in steps:
            if isinstance(step, Struck):
                self._strike(step)
            else:
                self._send(step)

    def _end_stream(self) -> None:
        """The sender has ended this direction, and so do we."""
        if self._passage is not None:
            self._carry_out(self._passage.flush(self._relay.clock.now_ns(), self._relay.switched_ns))
        if self._recorder is not None:
            self._recorder.flush()
        if self.deaf:
            return
        with contextlib.suppress(OSError):  # it has gone already
            self._there.shutdown(socket.SHUT_WR)

    def _strike(self, struck: Struck) -> None:
        """Wait or end the connection, as the fault wants it; all else has been done to the bytes."""
        fault = struck.fault
        now_ns = self._relay.clock.now_ns()
        where = {"channel": self._name, "offset": struck.offset, "t": now_ns}
        self._relay.report({"event": "fault", "fault": str(fault), **where})
        if fault.what == "stall":
            self._link.broken.wait(fault.value / 1e9)
        elif fault.what == "close" and fault.place == "return-path":
            with contextlib.suppress(OSError):
                self._there.shutdown(socket.SHUT_WR)
            self.deaf = True
        elif fault.what == "close":
            self._link.deafen()
            self._link.close_ends(fault.role)

    def _send(self, data: Buffer) -> None:
        if self.deaf:
            return
        if self._recorder is not None:
            self._recorder.write(data)
        view = memoryview(data)
        while view:
            try:
                size = self._there.send(view)
            except BlockingIOError:
                if self._link.broken.is_set():
                    return
                continue
            except OSError:
                raise _GoneError from None
            self.moved_bytes += size
            view = view[size:]


class Recorder:
    """Writes one direction into the capture. write_flow: of the flow, its sent() or received()."""

    def __init__(self, write_flow: Callable[..., None], clock: Clock) -> None:
        self._write = write_flow
        self._clock = clock
        self._units: Units | None = None
        self._all_payload = False
        self._frame: Frame | None = None
        self._digest = xxhash.xxh3_128()
        self._left = 0  # of a payload that is left out
        self._size = 0  # of it, digested

    def elide(self, syntax: Callable[[], Syntax], *, all_payload: bool) -> None:
        """From now on leave payloads away; of the main channel only those whose length the stream says."""
        self._all_payload = all_payload
        self._units = Units(syntax(), self._look)

    def write(self, data: Buffer) -> None:
        """These bytes pass."""
        if self._units is None:
            self._write([data], self._clock.now_ns())
            return
        for piece in self._units.feed(memoryview(data)):
            self._piece(piece)

    def flush(self) -> None:
        """No more comes."""
        if self._units is not None:
            self._end_payload()
            for piece in self._units.flush():
                self._write([piece.data], self._clock.now_ns())

    def _look(self, frame: Frame) -> None:
        self._frame = frame

    def _piece(self, piece: Piece) -> None:
        if piece.first:
            payload = piece.unit_size - len(piece.data)
            said = self._all_payload or isinstance(self._frame, RamRecordItem | VfioItem)
            self._left = payload if said and payload >= _ELIDED_BYTES_MIN else 0
        if not piece.payload or not self._left:
            self._write([piece.data], self._clock.now_ns())
            return
        view = memoryview(piece.data)
        while view:
            part = view[: _ELIDED_BYTES_MAX - self._size]
            self._digest.update(part)
            self._size += len(part)
            self._left -= len(part)
            view = view[len(part) :]
            if not self._left or self._size == _ELIDED_BYTES_MAX:
                self._end_payload()

    def _end_payload(self) -> None:
        if self._size:
            digest = "xxh3-128:" + self._digest.hexdigest()
            self._write([], self._clock.now_ns(), Elided(self._size, digest))
            self._digest.reset()
            self._size = 0


def _end_name(name: Any) -> str:
    return describe(name if isinstance(name, str) else (name[0], name[1]))


def _tick(sock: socket.socket, seconds: float) -> None:
    """Let blocked calls on a socket end after a while, to look around."""
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", 0, int(seconds * 1e6)))


def _reset(sock: socket.socket) -> None:
    """Have the coming close() send a reset."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _enough(head: memoryview) -> int:
    """How many bytes tell what a connection is, as far as its first ones say."""
    if len(head) >= 4 and bytes(head[:4]) == _CHANNEL_HEAD:
        return MULTIFD_INIT.size
    return 4


def _channel(head: bytes) -> str:
    """What a connection is whose first bytes are these."""
    if head[:4] == _MAIN_HEAD:
        return "main"
    if head[:4] == _CHANNEL_HEAD and len(head) >= MULTIFD_INIT.size:
        return f"channel {MULTIFD_INIT.unpack(head).id}"
    return "unknown"


# -- the process -------------------------------------------------------------------------------------


class _Process:
    """What happens to this process: signals and the end of stdin."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[float] = queue.SimpleQueue()  # seconds to drain
        self._lock = threading.Lock()

    def main(self) -> int:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: self._events.put(0.0))
        try:
            config = msgspec.json.decode(sys.stdin.buffer.readline(_LINE_BYTES_MAX), type=RelayConfig)
            relay = Relay(config, self._say)
        except (msgspec.MsgspecError, VfmigError, OSError) as error:
            self._say({"event": "result", "error": str(error)})
            return EXIT_BEGIN
        self._say({"event": "ready", "address": relay.address})
        threading.Thread(target=self._watch_stdin, name="stdin", daemon=True).start()
        self._say({"event": "result", **relay.close(self._events.get())})
        return 0

    def _watch_stdin(self) -> None:
        while sys.stdin.buffer.readline(_LINE_BYTES_MAX):
            pass
        self._events.put(_DRAIN_S)

    def _say(self, event: dict[str, Any]) -> None:
        with self._lock, contextlib.suppress(OSError):  # nobody reads any more
            sys.stdout.write(json.dumps(event) + "\n")
            sys.stdout.flush()


class RelayProcess:
    """A relay as a process, for a `with` block that it does not outlive. address: where it listens.

    on_event: called with each event as it comes, from a thread. inside: arguments that go before the
    command, for a process that begins in another namespace (netns.py). result: the last event.
    VfmigError: it could not begin.
    """

    def __init__(
        self, config: RelayConfig, on_event: Report = lambda _: None, inside: Sequence[str] = ()
    ) -> None:
        self.result: dict[str, Any] = {}
        self._on_event = on_event
        self._ready: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        environment = dict(os.environ)
        package = str(Path(mockdev.__file__).parent.parent)  # also where it is not installed
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (package, environment.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [*inside, sys.executable, "-m", "mockdev.lab.relay"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            process_group=0,
        )
        self.pid = self._process.pid
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(msgspec.json.encode(config) + b"\n")
            self._process.stdin.flush()
        self._reader = threading.Thread(target=self._read, name="relay output", daemon=True)
        self._reader.start()
        first = self._ready.get()
        if first.get("event") != "ready":
            self.close()
            raise VfmigError(f"the relay could not begin: {first.get('error', 'it said nothing')}")
        self.address = str(first["address"])

    def close(self, *, at_once: bool = False) -> dict[str, Any]:
        """Let it end, kill it if it does not, and give its last word; {} when it had none.

        at_once: what is still on its way need not arrive.
        """
        if at_once:
            self._process.terminate()
        with contextlib.suppress(OSError):
            if self._process.stdin is not None and not at_once:
                self._process.stdin.close()
        try:
            self._process.wait(_DRAIN_S + _END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        return self.result

    def _read(self) -> None:
        assert self._process.stdout is not None
        begun = False
        with self._process.stdout as output:
            for event in _events(output):
                if event.get("event") == "result":
                    self.result = event
                if not begun:
                    begun = True
                    self._ready.put(event)
                else:
                    self._on_event(event)
        if not begun:
            self._ready.put({})

    def __enter__(self) -> RelayProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _events(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict):
                yield event


def main() -> None:
    """The process's entry."""
    status = _Process().main()
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  what is buffered for a closed pipe must not complain
    os._exit(status)  # a daemon thread may sit in a read of stdin


if __name__ == "__main__":
    main()
