# SPDX-License-Identifier: GPL-2.0-or-later
"""What is known of a migration does not depend on the order in which its connections were captured."""

from __future__ import annotations

from pathlib import Path

from tests.canaries.script import STEP_NS, good
from verifier.check import check_path


def test_the_last_byte_of_device_state_is_the_last_in_time_not_in_the_file(tmp_path: Path) -> None:
    script = good(journals=False)
    first, late = script.find("vf0.0").time_ns, script.now_ns
    script.find("vf0.1").time_ns = late  # on the other channel, and written before the rest
    script.write_capture(tmp_path / "c.pcapng")
    timing = check_path(tmp_path / "c.pcapng").timing
    assert late > script.find("vf1.2").time_ns + STEP_NS
    assert timing.device_state_ms == (late - first) / 1e6
