# SPDX-License-Identifier: GPL-2.0-or-later
"""The mock devices lent to an unmodified QEMU, whose system calls on them we answer."""
