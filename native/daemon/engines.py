"""The processes of this node's engines, each watched by its own pidfd. PROTOCOL rule 9.

The death of any process of an engine ends the others (DESIGN §5): its holder is *doomed*, and no process of it is
welcome any more. Who may hold pages is killed at once; the agent's process, which answers the engine's clients, has a
moment to end by itself. Closing a connection is not death.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from native.fences import Holder
from native.journal import Known
from native.pool import Owner
from native.processes import Gone, Identity, Process, reopen

log = logging.getLogger(__name__)

REMEMBERED_DOOMS = 1024
FAREWELL_S = 5.0
"""What the agent's process of an engine has to end by itself when another process of it died, seconds."""


class Unwelcome(Exception):
    """This process cannot say hello as what it claims to be."""


@dataclass(eq=False, slots=True)
class Member:
    """A process of an engine. `process` is None where it is of another PID namespace and has not come back since the
    daemon was restarted: it can be neither watched nor killed, so it counts as alive."""

    number: int
    holder: Holder
    role: str
    rank: int
    identity: Identity
    process: Process | None

    @property
    def owner(self) -> Owner:
        return Owner(self.holder, self.number)

    @property
    def known(self) -> Known:
        return Known(self.number, self.holder, self.role, self.rank, self.identity)

    @property
    def maps(self) -> bool:
        """Device pages are mapped by workers alone."""
        return self.role == "worker"

    def kill(self) -> bool:
        """False: it is out of reach."""
        return self.process is not None and self.process.kill()

    def __str__(self) -> str:
        return f"{self.role} {self.rank} of {self.holder}, {self.process or self.identity}"


class Engines:
    """All processes that said hello and are not proven dead. `on_death` is called once for each that is."""

    def __init__(self, on_death: Callable[[Member], None], farewell_s: float = FAREWELL_S) -> None:
        self._on_death = on_death
        self._farewell_s = farewell_s
        self._farewells: dict[Holder, asyncio.TimerHandle] = {}
        self._members: dict[int, Member] = {}
        self._doomed: dict[Holder, str] = {}
        self._numbers = itertools.count(1)

    def __iter__(self) -> Iterator[Member]:
        return iter(tuple(self._members.values()))

    @property
    def doomed(self) -> Collection[Holder]:
        """Engines of which a process died or was killed here, in this life of the daemon."""
        return self._doomed.keys()

    def alive(self, holder: Holder) -> bool:
        """Some process of the engine that may still change a device is not proven dead. The agent of a doomed engine
        is not one: nothing that it asks for is done."""
        doomed = holder in self._doomed
        return any(member.holder == holder and (member.maps or not doomed) for member in self._members.values())

    def restore(self, known: Iterable[Known]) -> None:
        """Find the processes of a previous life of the daemon again; those that are gone are dead (rule 11)."""
        gone: list[Member] = []
        for record in known:
            try:
                process = reopen(record.identity)
            except Gone as error:
                log.info("%s died while the daemon was away: %s", record.holder, error)
                gone.append(Member(record.number, record.holder, record.role, record.rank, record.identity, None))
                continue
            except PermissionError as error:
                log.warning("%s: %s; its pages stay charged until it comes back", record.holder, error)
                process = None
            self._add(Member(record.number, record.holder, record.role, record.rank, record.identity, process))
        self._numbers = itertools.count(max((record.number for record in known), default=0) + 1)
        for member in gone:
            self._bury(member)

    def skip(self, numbers: Iterable[int]) -> None:
        """These numbers name processes that are dead and yet not forgotten: no other gets them."""
        self._numbers = itertools.count(max((next(self._numbers), *(number + 1 for number in numbers))))

    def known(self, process: Process, holder: Holder) -> Member | None:
        """The member that this process is already."""
        for member in self._members.values():
            if member.process is not None and (member.process.key, member.holder) == (process.key, holder):
                return member
        return None

    def welcome(self, process: Process, holder: Holder, role: str, rank: int) -> Member:
        """This process is of that engine; further connections of the same process give the same member.

        Raises:
            Unwelcome: the engine is dying.
        """
        if holder in self._doomed:
            raise Unwelcome(f"{holder} is ended: {self._doomed[holder]}")
        member = self.known(process, holder)
        if member is not None:
            process.close()
            if role == "worker":  # it may map from now on, whatever it is besides
                member.role, member.rank = role, rank
            return member
        member = self._returned_stranger(process, holder, role, rank)
        if member is None:
            member = Member(next(self._numbers), holder, role, rank, process.identity, process)
        self._add(member)
        log.info("welcome %s", member)
        return member

    def doom(self, holder: Holder, why: str) -> None:
        """SIGKILL all processes of an engine; idempotent, and again for those that do not die at once."""
        first = self._condemn(holder, why)
        for member in self._of(holder):
            if not member.kill() and first:
                _out_of_reach(member)

    def _wind_up(self, holder: Holder, why: str) -> None:
        """A process of the engine died: SIGKILL for who maps, and for the agent only after a farewell."""
        if not self._condemn(holder, why):
            return
        for member in self._of(holder):
            if member.maps and not member.kill():
                _out_of_reach(member)
        if self._of(holder):
            later = asyncio.get_running_loop().call_later
            self._farewells[holder] = later(self._farewell_s, self._end_farewell, holder)

    def _end_farewell(self, holder: Holder) -> None:
        del self._farewells[holder]
        for member in self._of(holder):
            log.warning("%s has not ended by itself in %g s: killing it", member, self._farewell_s)
            if not member.kill():
                _out_of_reach(member)

    def _condemn(self, holder: Holder, why: str) -> bool:
        """False: it was doomed before."""
        if holder in self._doomed:
            return False
        log.warning("ending %s: %s", holder, why)
        self._doomed[holder] = why
        self._forget_old_dooms()
        return True

    def _of(self, holder: Holder) -> list[Member]:
        return [member for member in self._members.values() if member.holder == holder]

    def close(self) -> None:
        """Stop watching; nobody is killed."""
        for farewell in self._farewells.values():
            farewell.cancel()
        self._farewells.clear()
        for member in self._members.values():
            if member.process is not None:
                asyncio.get_running_loop().remove_reader(member.process.fileno())
                member.process.close()
        self._members.clear()

    def _forget_old_dooms(self) -> None:
        """A nonce never comes back, so what is long gone need not be remembered."""
        for holder in tuple(self._doomed)[:-REMEMBERED_DOOMS]:
            if not self._of(holder):
                del self._doomed[holder]

    def _returned_stranger(self, process: Process, holder: Holder, role: str, rank: int) -> Member | None:
        """A process of another PID namespace that comes back after a restart is told by its role and rank."""
        claims = [m for m in self._members.values() if (m.holder, m.role, m.rank) == (holder, role, rank)]
        if len(claims) != 1 or claims[0].process is not None:
            return None
        claims[0].process = process
        return claims[0]

    def _add(self, member: Member) -> None:
        self._members[member.number] = member
        if member.process is not None:
            asyncio.get_running_loop().add_reader(member.process.fileno(), self._died, member)

    def _died(self, member: Member) -> None:
        if member.process is None or self._members.get(member.number) is not member:
            return
        asyncio.get_running_loop().remove_reader(member.process.fileno())
        member.process.close()
        log.info("dead: %s", member)
        self._bury(member)

    def _bury(self, member: Member) -> None:
        self._members.pop(member.number, None)
        self._wind_up(member.holder, f"{member.role} {member.rank} died")
        if member.holder in self._farewells and not self._of(member.holder):
            self._farewells.pop(member.holder).cancel()
        self._on_death(member)


def _out_of_reach(member: Member) -> None:
    log.error("%s cannot be killed from here: end it, or run the daemon in the host's PID namespace", member)
