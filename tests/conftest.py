# SPDX-License-Identifier: GPL-2.0-or-later
"""How hard Hypothesis tries: `quick`, `ci` (the default: the same examples each time) or `night`.

Chosen with --hypothesis-profile or VFMIG_HYPOTHESIS.
"""

from __future__ import annotations

import os
import signal

from hypothesis import Phase, settings

# Not what tells what else would fail alike: for a state machine that takes ten times as long as to shrink.
_PHASES = set(Phase) - {Phase.explain}
_BASE = settings(deadline=None, print_blob=True, phases=_PHASES)
settings.register_profile("quick", _BASE, max_examples=20)
settings.register_profile("ci", _BASE, max_examples=100, derandomize=True)
settings.register_profile("night", _BASE, max_examples=5000, stateful_step_count=100)
settings.load_profile(os.environ.get("VFMIG_HYPOTHESIS", "ci"))

# A shell that starts us in the background (`&`, nohup) has these ignored, and all that we start with us.
for _signal, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, _usual)
