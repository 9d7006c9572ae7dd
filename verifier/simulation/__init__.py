# SPDX-License-Identifier: GPL-2.0-or-later
"""One seed, one whole migration, one thread: the production plans, devices and channel tables under a virtual
clock, over virtual links, in an order that a scheduler chooses; the judge watches.
"""
