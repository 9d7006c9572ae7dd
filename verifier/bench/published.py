# SPDX-License-Identifier: GPL-2.0-or-later
"""Downtimes that were published for QEMU with ConnectX-7 VFs, as data. Nothing here was measured by us.

All of them: source 2 x Xeon Gold 5218, target 2 x Xeon Platinum 8260, 100 GbE, a VM of 24 vCPUs and 15 GiB
with ConnectX-7 VFs of about 100 MiB of device state each (430 MiB for four), switchover-ack on.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Transfer = Literal["main", "multifd"]
Statistic = Literal["lowest", "q25", "median"]

TALK = "M. S. Szmigiero, talk at KVM Forum 2024 and mail to qemu-devel of 1 October 2024"
SERIES = "cover letter of the patch series' version 3, qemu-devel, 17 November 2024"


class Published(NamedTuple):
    """One published downtime. channels: of multifd, None where the table does not say.

    statistic: of many migrations: the series' were 70 to 100 for each figure; of the talk's it is not said.
    """

    vfs: int
    transfer: Transfer
    channels: int | None
    statistic: Statistic
    downtime_ms: int
    source: str


PUBLISHED = (
    Published(1, "main", None, "lowest", 283, TALK),
    Published(2, "main", None, "lowest", 614, TALK),
    Published(4, "main", None, "lowest", 1783, TALK),
    Published(1, "multifd", None, "lowest", 274, TALK),
    Published(2, "multifd", None, "lowest", 434, TALK),
    Published(4, "multifd", None, "lowest", 1068, TALK),
    Published(1, "main", 6, "q25", 487, SERIES),
    Published(2, "main", 6, "q25", 859, SERIES),
    Published(4, "main", 6, "q25", 1900, SERIES),
    Published(1, "multifd", 6, "q25", 366, SERIES),
    Published(2, "multifd", 6, "q25", 556, SERIES),
    Published(4, "multifd", 6, "q25", 1095, SERIES),
    Published(4, "multifd", 8, "q25", 1104, SERIES),
    Published(4, "multifd", 15, "q25", 1125, SERIES),
)


def published(vfs: int, transfer: Transfer, channels: int) -> list[Published]:
    """What was published for this: at this number of channels, or without a word on it."""
    return [
        cell
        for cell in PUBLISHED
        if (cell.vfs, cell.transfer) == (vfs, transfer) and cell.channels in (None, channels)
    ]
