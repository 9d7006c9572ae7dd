# SPDX-License-Identifier: GPL-2.0-or-later
"""A mock migratable device, pure: time is an argument, nothing waits; see device.py."""
