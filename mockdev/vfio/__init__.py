# SPDX-License-Identifier: GPL-2.0-or-later
"""Facts of the kernel's VFIO migration interface, of mlx5's stream and of the VF's PCI identity."""
