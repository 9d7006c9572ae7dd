# SPDX-License-Identifier: GPL-2.0-or-later
"""The loop to compare with: one process's image into another's over TCP, and no protocol at all.

Run as `python -m verifier.bench.bare STREAMS BYTES_PER_STREAM ROUNDS`; it forks the receiving process and
prints one JSON line per round: seconds, and CPU seconds of both processes. Pieces of 1 MiB, one thread a
stream and side, socket buffers and memory as our endpoints have them, receiving straight into the image.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable

from mockdev.memory import allocate
from mockdev.runtime.transports import socket_buffer_bytes

PIECE_BYTES = 1 << 20
_ANSWER_BYTES = 16


def _together(count: int, run: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _pieces(memory: memoryview, stream: int, size: int) -> list[memoryview]:
    part = memory[stream * size : (stream + 1) * size]
    return [part[at : at + PIECE_BYTES] for at in range(0, size, PIECE_BYTES)]


def _listener(buffer_bytes: int) -> socket.socket:
    listener = socket.socket()
    _set_buffers(listener, buffer_bytes)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


def _set_buffers(end: socket.socket, buffer_bytes: int) -> None:
    """Before a connection stands, as our transports do: TCP agrees on its window then."""
    if buffer_bytes:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)


def _connections(streams: int) -> tuple[list[socket.socket], list[socket.socket]]:
    buffer_bytes = socket_buffer_bytes(streams, None)
    ours, theirs = [], []
    with _listener(buffer_bytes) as listener:
        for _ in range(streams):
            end = socket.socket()
            _set_buffers(end, buffer_bytes)
            end.connect(listener.getsockname())
            ours.append(end)
            theirs.append(listener.accept()[0])
    return ours, theirs


def _send(ends: list[socket.socket], memory: memoryview, size: int) -> None:
    def run(stream: int) -> None:
        for piece in _pieces(memory, stream, size):
            ends[stream].sendall(piece)

    _together(len(ends), run)


def _receive(ends: list[socket.socket], memory: memoryview, size: int) -> None:
    def run(stream: int) -> None:
        for piece in _pieces(memory, stream, size):
            if ends[stream].recv_into(piece, len(piece), socket.MSG_WAITALL) != len(piece):
                os._exit(1)

    _together(len(ends), run)


def _far_side(ends: list[socket.socket], size: int, rounds: int, say: int) -> None:
    memory = allocate(len(ends) * size)
    os.write(say, b"r")
    for _ in range(rounds):
        before = time.process_time()
        _receive(ends, memory, size)
        os.write(say, f"{time.process_time() - before:.6f}".ljust(_ANSWER_BYTES).encode())


def main() -> None:
    """Measure and print."""
    streams, size, rounds = (int(word) for word in sys.argv[1:4])
    ours, theirs = _connections(streams)
    hear, say = os.pipe()
    if os.fork() == 0:
        try:
            _far_side(theirs, size, rounds, say)
        finally:
            os._exit(0)
    os.close(say)
    memory = allocate(streams * size)
    memory[:] = os.urandom(PIECE_BYTES) * (len(memory) // PIECE_BYTES)
    os.read(hear, 1)
    for _ in range(rounds):
        cpu_s, start = time.process_time(), time.perf_counter()
        _send(ours, memory, size)
        far_cpu_s = float(os.read(hear, _ANSWER_BYTES))
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "cpu_s": time.process_time() - cpu_s + far_cpu_s}), flush=True)
    os.wait()


if __name__ == "__main__":
    main()
