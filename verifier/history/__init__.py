# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures and journals as one line of observations. It keeps ranges of the mapped file, not bytes."""
