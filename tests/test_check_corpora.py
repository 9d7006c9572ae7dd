# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures of real QEMU migrations are read to their last byte and judged as they must be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from verifier.check import check_path

CORPORA = Path(__file__).parent.parent / "corpora"
EXPECTED: dict[str, dict[str, Any]] = json.loads((CORPORA / "expected.json").read_text())


def test_every_capture_has_an_expectation() -> None:
    assert {path.name for path in CORPORA.glob("*.pcapng.gz")} == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_capture_is_judged_as_expected(name: str) -> None:
    report = check_path(CORPORA / name)
    found = {
        "standing": report.standing.value,
        "outcome": report.outcome,
        "transfer": report.transfer,
        "dialect": report.dialect,
        "channels": report.channels,
        "devices": [[d.id, d.buffers, d.payload_bytes, d.config_seen] for d in report.devices],
        "violations": [v.id for v in report.violations],
    }
    assert found == EXPECTED[name], report.unknown
    for flow in report.exercised.accounting[0].flows:
        assert flow.decoded_bytes + flow.lost_bytes + flow.undecodable_bytes == flow.total_bytes
        assert flow.lost_bytes == 0
        if EXPECTED[name]["standing"] == "holds":
            assert flow.undecodable_bytes == 0
