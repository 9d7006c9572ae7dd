# SPDX-License-Identifier: GPL-2.0-or-later
"""Run a syntax over bytes that are all there: what the tests of the wire need, and nothing cleverer."""

from __future__ import annotations

from mockdev.wire.frames import Frame, Payload, Syntax, Want


class Cut(Exception):
    """The bytes ended inside something."""


def frames_of(syntax: Syntax, data: bytes) -> list[Frame]:
    """All frames of `data`. Cut when it ends early, RemoteProtocolError as the syntax raises it."""
    frames: list[Frame] = []
    at = 0
    try:
        step = next(syntax)
        while True:
            if isinstance(step, Want):
                if step.peek:
                    step = syntax.send(data[at:])
                    continue
                if len(data) - at < step.size:
                    if not (step.may_end and at == len(data)):
                        raise Cut(f"{step.what} at {at}")
                    step = syntax.send(b"")
                    continue
                raw = data[at : at + step.size]
                at += step.size
                step = syntax.send(raw)
            elif isinstance(step, Payload):
                at += step.size
                if at > len(data):
                    raise Cut("payload")
                step = next(syntax)
            else:
                frames.append(step)
                step = next(syntax)
    except StopIteration:
        assert at == len(data), f"{len(data) - at} bytes left over"
        return frames
