# SPDX-License-Identifier: GPL-2.0-or-later
"""Searches many scenes for one that fails, and makes what it finds small, sayable and repeatable."""
