# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures: the file, the packets in it, and the TCP streams that they carry."""
