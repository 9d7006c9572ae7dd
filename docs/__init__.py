# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages written from the code: see `generate`."""
