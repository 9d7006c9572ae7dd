# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole runs: processes started, watched and ended, and the folder of evidence that they leave."""
