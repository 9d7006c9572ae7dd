# SPDX-License-Identifier: GPL-2.0-or-later
"""How hard Hypothesis tries: `quick`, `ci` (the default: the same examples each time) or `night`.

Chosen with --hypothesis-profile or VFMIG_HYPOTHESIS.
"""

from __future__ import annotations

import os
import signal

from hypothesis import settings

settings.register_profile("quick", max_examples=20, deadline=None)
settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True, print_blob=True)
settings.register_profile("night", max_examples=5000, deadline=None, stateful_step_count=100, print_blob=True)
settings.load_profile(os.environ.get("VFMIG_HYPOTHESIS", "ci"))

# A shell that starts us in the background (`&`, nohup) has these ignored, and all that we start with us.
for _signal, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, _usual)
