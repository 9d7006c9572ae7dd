# SPDX-License-Identifier: GPL-2.0-or-later
"""Benchmarks: always ratios between things measured in turn in one run, medians with their spread."""
