# SPDX-License-Identifier: GPL-2.0-or-later
"""Canaries: small migrations, each of which breaks one invariant, and a good one that breaks none."""
