# SPDX-License-Identifier: GPL-2.0-or-later
"""The half of vfmig that judges bytes: captures, history, invariants, reports, and the command."""
