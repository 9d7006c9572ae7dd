# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's migration wire format, without I/O: layouts, dialects, and the syntax of both kinds of channel."""
