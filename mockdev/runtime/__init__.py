# SPDX-License-Identifier: GPL-2.0-or-later
"""The endpoints: sockets, threads and clocks around the pure parts."""
