# SPDX-License-Identifier: GPL-2.0-or-later
"""What `vfmig bench simulation` says that it plays is what it plays."""

from __future__ import annotations

import json

import pytest

from verifier.bench.simulation import BUFFERS, CHANNELS, SHAPE, VFS
from verifier.cli.group import execute
from verifier.simulation.migration import simulate
from verifier.simulation.scene import FREE, draw


def test_the_scenes_have_the_shape_that_is_told() -> None:
    completed = 0
    for seed in range(20):
        scene = draw(seed, **SHAPE)
        came = simulate(scene)
        assert scene.migration.channels == CHANNELS
        if came.outcome == "completed":
            completed += 1
            buffers = {row.buffers for row in came.report.devices}
            assert buffers == {BUFFERS} if scene.profile is FREE else buffers <= {BUFFERS, BUFFERS + 1}, seed
            assert len(came.report.devices) == VFS
    assert completed > 10


def test_figures_come_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["bench", "simulation", "--scenes", "3", "--rounds", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "vfmig.bench.simulation/1"
    for row in told["rows"]:
        assert 0 < row["lowest"] <= row["judged_per_s"] <= row["highest"]
        assert row["unjudged_per_s"] > 0
