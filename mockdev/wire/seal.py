# SPDX-License-Identifier: GPL-2.0-or-later
"""The seal at the end of a capture that was written here and closed: the digest of all bytes before it.

It is a pcapng block of a type for local use, which readers pass over and tools that write a capture anew
leave out. It shows that a file is no longer what was written (a bad disk or copy, an edit); against somebody
who forges it is no help, for it holds no secret.

Source: IETF draft-ietf-opsawg-pcapng, section 3.1 (block types) and 11.1 (those for local use).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

import xxhash

_KIND = 0x80000002
_NAME = b"vfmig/seal/1"
_BLOCK = struct.Struct("<II12s16sI")  # type, length, name, xxh3-128, length
SEAL_BYTES = _BLOCK.size


class Seal(NamedTuple):
    """A seal that was found. at: where it begins; digest: of the bytes before it, as it says."""

    at: int
    digest: bytes


def seal(pieces: Iterable[bytes]) -> bytes:
    """The block that seals a file which is made of these pieces so far."""
    hasher = xxhash.xxh3_128()
    for piece in pieces:
        hasher.update(piece)
    return _BLOCK.pack(_KIND, SEAL_BYTES, _NAME, hasher.digest(), SEAL_BYTES)


def find_seal(tail: bytes, size: int) -> Seal | None:
    """The seal of a file of `size` bytes that ends with `tail`; None when it has none."""
    if len(tail) < SEAL_BYTES:
        return None
    kind, length, name, digest, trailer = _BLOCK.unpack(tail[-SEAL_BYTES:])
    sealed = (kind, length, name, trailer) == (_KIND, SEAL_BYTES, _NAME, SEAL_BYTES)
    return Seal(size - SEAL_BYTES, digest) if sealed else None
