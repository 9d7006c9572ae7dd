# SPDX-License-Identifier: GPL-2.0-or-later
"""What was said upstream of a queue without a cap, held against the certificate."""

from __future__ import annotations

from typing import Literal

import msgspec

from mockdev.wire.structs import VFIO_IDX_MAX
from verifier.bench.cap import Certificate

CLAIM = (
    'Avihai Horon on qemu-devel, 11 March 2025: "even when unlimited, it is really limited to '
    '2 * device_state_size" (bdd69682-3d0f-4687-a8a5-43a6cb4cecc3@nvidia.com, on "vfio/migration: Add also '
    'max in-flight VFIO device state buffers size limit"); which memory is meant, and why, is not said'
)


class Ruling(msgspec.Struct, kw_only=True):
    """The claim, read in one way. bytes: what that memory comes to at most, None: it has no bound.

    holds: the bound is within the claim; refuted: a schedule that is possible is not; open: neither is shown.
    """

    memory: str
    ruling: Literal["holds", "refuted", "open"]
    bytes: int | None
    why: str


class Claim(msgspec.Struct, kw_only=True):
    """allowed_bytes: twice the state of all devices."""

    claim: str
    allowed_bytes: int
    rulings: list[Ruling]


def rule(certificate: Certificate) -> Claim:
    """The claim for the case of a certificate."""
    case, proof = certificate.case, certificate.proof
    allowed = 2 * case.vfs * case.state_bytes

    def ruling(memory: str, most: int, reached: int, why: str) -> Ruling:
        holds: Literal["holds", "refuted", "open"] = "holds" if most <= allowed else "open"
        if reached > allowed:
            holds = "refuted"
        return Ruling(memory=memory, ruling=holds, bytes=most, why=why)

    table_bytes = 24 * (VFIO_IDX_MAX + 1)
    return Claim(
        claim=CLAIM,
        allowed_bytes=allowed,
        rulings=[
            ruling(
                "queued bytes, as x-migration-max-queued-buffers-size counts them",
                proof.upper_all_bytes,
                proof.reached_all_bytes,
                "a byte is counted once: the state and the config buffer, so once the state, not twice",
            ),
            ruling(
                "memory of the target's process for it",
                certificate.advice_bytes,
                proof.reached_all_bytes,
                "a buffer exists twice only while a channel hands it over: one more a channel",
            ),
            Ruling(
                memory="either, with a source that is no QEMU of good will",
                ruling="refuted",
                bytes=None,
                why="the target knows no state size: buffers behind a gap go on without end, and one empty "
                f"buffer with the highest index asks for a table of {table_bytes / (1 << 30):.0f} GiB",
            ),
        ],
    )
