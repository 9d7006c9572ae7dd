# SPDX-License-Identifier: GPL-2.0-or-later
"""What both simulated ends have in common: a journal, tasks that stop together, links, and how it ends."""

from __future__ import annotations

from collections.abc import Sequence

from mockdev.errors import CancelledError, RemoteProtocolError, describe_error
from mockdev.journal import AnyLine, Begin, End, Mark, failure_line
from mockdev.runtime.config import MigrationConfig
from verifier.simulation.link import Link
from verifier.simulation.slot import Slot
from verifier.simulation.watch import Watch
from verifier.simulation.world import Group, Steps, World


class Side:
    """One end. slots: its devices. outcome: completed, failed or cancelled, once it is over; runs: whether
    the VM may run here.
    """

    role = ""

    def __init__(
        self, world: World, watch: Watch, config: MigrationConfig, slots: Sequence[Slot], *, yields: bool
    ) -> None:
        self.world = world
        self.watch = watch
        self.config = config
        self.slots = slots
        self.group = Group(world, self._stopped)
        self.links: list[Link] = []  # that it writes to or reads from
        self.outcome = ""
        self.error = ""
        self.runs = False
        self.committed = False
        self._yields = yields
        self.say(
            Begin(
                t=world.now_ns,
                role=self.role,
                uuid=config.uuid,
                queue_cap=config.queue_cap_bytes,
                config={"channels": config.channels, "transfer": config.transfer},
            )
        )

    # -- journal -------------------------------------------------------------------------------------

    def say(self, line: AnyLine) -> None:
        """Write a line."""
        self.watch.say(self.role, line)

    def mark(self, name: str, value: int = 0) -> None:
        """Journal a step."""
        self.watch.say(self.role, Mark(t=self.world.now_ns, name=name, value=value))

    # -- life ----------------------------------------------------------------------------------------

    def body(self) -> Steps:
        """The main thread."""
        raise NotImplementedError

    def aftermath(self, cause: BaseException | None) -> Steps:
        """What it does when all its threads have ended; sets `runs`."""
        raise NotImplementedError

    def life(self) -> Steps:
        """From the first step to the last line of the journal."""
        self.group.spawn(f"{self.role} main", self.body())
        while self.group.tasks:
            yield self.group.ended
        cause = self.group.error
        yield from self.aftermath(cause)
        self.outcome = "completed"
        if cause is not None:
            self.outcome = "cancelled" if isinstance(cause, CancelledError) else "failed"
            self.error = describe_error(cause)
            self.say(failure_line(self.world.now_ns, cause))
        for link in self.links:
            self._close(link)
        self.say(End(t=self.world.now_ns, outcome=self.outcome, runs=self.runs))

    def cancel(self) -> None:
        """Call the migration off, unless it is past that."""
        if not self.committed and not self.group.stopped and not self.outcome:
            self.mark("fault")
            self.group.stop(CancelledError("cancelled by the user"))

    def deadline(self) -> None:
        """Nothing has moved for too long."""
        if not self.group.stopped and not self.outcome:
            self.group.stop(RemoteProtocolError("nothing has come for too long", field="deadline"))

    def turn(self) -> Steps:
        """Where a thread may be held up for no reason."""
        if self._yields:
            yield None

    def _stopped(self) -> None:
        """Told to stop: connections end, but for what is still to be said."""
        for link in self.links:
            self._close(link)

    def _close(self, link: Link) -> None:
        link.close()
