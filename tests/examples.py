# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers of examples that follow the Hypothesis profile."""

from __future__ import annotations

from hypothesis import settings

_CI = 100  # max_examples of the profile `ci`


def examples(count: int) -> int:
    """So many in `ci`, in proportion fewer in `quick` and more in `night`."""
    return max(1, count * settings().max_examples // _CI)
