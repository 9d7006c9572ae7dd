# SPDX-License-Identifier: GPL-2.0-or-later
"""One canary per invariant: how to turn the good migration into one that breaks just that.

An edit may need a second one to keep the rest in order (a dropped SYNC takes its number along); that is
the craft of it. CANARIES maps ids to edits.
"""

from __future__ import annotations

from tests.canaries.agreements import AGREEMENTS
from tests.canaries.connections import CONNECTIONS
from tests.canaries.device_state import DEVICE_STATE
from tests.canaries.edits import Edit
from tests.canaries.endpoints import ENDPOINTS
from tests.canaries.lent import LENT
from tests.canaries.main_channel import MAIN_CHANNEL
from tests.canaries.ram import RAM
from tests.canaries.switchover import SWITCHOVER

CANARIES: dict[str, Edit] = {
    **CONNECTIONS,
    **MAIN_CHANNEL,
    **RAM,
    **DEVICE_STATE,
    **SWITCHOVER,
    **ENDPOINTS,
    **LENT,
    **AGREEMENTS,
}
