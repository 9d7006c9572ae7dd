# SPDX-License-Identifier: GPL-2.0-or-later
"""The half of vfmig that makes bytes: wire format, VFIO device, sender, receiver."""
