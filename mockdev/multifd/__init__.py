# SPDX-License-Identifier: GPL-2.0-or-later
"""Sending and receiving device state over several channels, pure: decisions without threads or sockets."""
