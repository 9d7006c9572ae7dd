# SPDX-License-Identifier: GPL-2.0-or-later
"""State machines for Hypothesis that get far: each step is one of the actions that are possible now."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule


class Machine(RuleBasedStateMachine):
    """`possible` names methods, the plainest first; each takes the data to draw from.

    With a rule for each, Hypothesis turns some off in every example, and what needs five of them in turn is
    hardly ever reached. A name that stands twice is drawn twice as often.
    """

    _whole = False  # at least one step was made, and none failed

    def possible(self) -> list[str]:
        """What may happen now."""
        raise NotImplementedError

    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        """One step."""
        self._whole = False
        name = data.draw(st.sampled_from(self.possible()), label="step")
        getattr(self, name)(data)
        self._whole = True

    def finish(self) -> None:
        """What has to be true however it stands, found out by going on to the end; not after a failure."""
        raise NotImplementedError

    def teardown(self) -> None:
        if self._whole:
            self.finish()
