# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers for people."""

from __future__ import annotations


def size_text(size: float) -> str:
    """A size: "100 MiB", "1.5 GiB", "17 bytes"."""
    for unit, name in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}".replace(".0 ", " ")
    return "1 byte" if size == 1 else f"{size:.0f} bytes"


def rate_text(bytes_per_s: float) -> str:
    """A rate, in decimal units: "5.3 GB/s"."""
    for unit, name in ((1e9, "GB/s"), (1e6, "MB/s"), (1e3, "kB/s")):
        if bytes_per_s >= unit:
            return f"{bytes_per_s / unit:.1f} {name}"
    return f"{bytes_per_s:.0f} B/s"


def duration_text(ms: float) -> str:
    """A time: "0.31 ms", "7.2 ms", "274 ms", "1.78 s"."""
    if ms >= 999.5:
        return f"{ms / 1000:.2f} s"
    return f"{ms:.0f} ms" if ms >= 10 else f"{ms:.1f} ms" if ms >= 1 else f"{ms:.2f} ms"
