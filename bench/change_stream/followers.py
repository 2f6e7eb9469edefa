"""Watchers that follow an account, reconnect, and must know all of it at the end."""

import asyncio
import dataclasses
from contextlib import aclosing
from dataclasses import dataclass, field
from random import Random

from bench.change_stream.account_replica import Lost, Replica
from bench.change_stream.follow_transports import (
    BROKEN,
    COUNTERS,
    ROADS,
    Broken,
    Place,
    Refused,
    asking,
    snapshot,
    told,
)

LEAVES = 0.05  # to disconnect after a batch
DIES = 0.3  # to continue from the saved replica after disconnecting
KEEPS = 0.1  # to save the replica after a batch
SLOW = {"socket": 0.8, "events": 0.8, "updates": 0.03, "asking": 0.8}  # seconds, by transport
REST = 0.4  # seconds


@dataclass
class Watcher:
    """A follower with one transport and a replica of the account."""

    name: str
    place: Place
    road: str
    random: Random
    slow: bool = False
    by: str = ""  # if it is not the account's own
    replica: Replica | None = None
    heard: int = 0
    came: int = 0
    died: int = 0  # times that it continued from the saved replica
    afresh: list[str] = field(default_factory=list)  # why the account was read again
    wrong: list[str] = field(default_factory=list)
    calm: bool = False  # no more disconnects and pauses, to catch up
    _kept: Replica | None = field(default=None, repr=False)

    @property
    def at(self) -> int:
        """The number of the newest event it knows; -1 if it knows none."""
        return self.replica.at if self.replica else -1

    async def run(self) -> None:
        """Follow until cancelled, or until the server returns an unexpected response."""
        while True:
            try:
                if self.replica is None:
                    async with asking(self.place) as http:
                        self.replica = await snapshot(http)
                    self._kept = self.replica.copy()
                await self._follow(self.replica)
            except Lost as reason:
                self.afresh.append(str(reason))
                self._learned()
                self.replica = None
            except (*BROKEN, Broken):
                await asyncio.sleep(self.random.uniform(0.02, 0.2))
            except Refused as problem:
                self.wrong.append(f"{self.name} at {self.at} was told {problem}")
                return

    async def _follow(self, replica: Replica) -> None:
        self.came += 1
        place = dataclasses.replace(self.place, secret=self.by or self.place.secret)
        batches = ROADS[self.road](place, replica.cursor, self.random, slow=self.slow)
        async with aclosing(batches) as coming:
            async for events, cursor in coming:
                replica.take(events, cursor)
                self.heard += len(events)
                if self.calm:
                    continue
                if self.slow:
                    await asyncio.sleep(self.random.uniform(0, SLOW[self.road]))
                if self.random.random() < KEEPS:
                    self._kept = replica.copy()
                if self.random.random() < LEAVES:
                    break
        if self._kept and self.random.random() < DIES:
            self._learned()
            self.died += 1
            self.replica = self._kept.copy()
        await asyncio.sleep(self.random.uniform(0, REST))

    def _learned(self) -> None:
        """Keep the problems of a replica that is replaced."""
        if self.replica and self.replica is not self._kept:
            known = self._kept.wrong if self._kept else []
            self.wrong += [f"{self.name}: {one}" for one in self.replica.wrong if one not in known]

    @property
    def complaints(self) -> list[str]:
        """All problems found until now."""
        mine = [f"{self.name}: {one}" for one in (self.replica.wrong if self.replica else [])]
        return list(dict.fromkeys([*self.wrong, *mine]))


@dataclass
class Counting:
    """A follower of mailbox counters only."""

    name: str
    place: Place
    random: Random
    counters: dict[str, tuple[int, int]] = field(default_factory=dict)  # total, unseen
    wrong: list[str] = field(default_factory=list)
    calm: bool = False

    async def run(self) -> None:
        """Follow until cancelled, or until the server returns an unexpected response."""
        while True:
            try:
                async with aclosing(told(self.place, COUNTERS)) as coming:
                    async for data in coming:
                        for one in data["counters"]:
                            self.counters[one["id"]] = (one["total"], one["unseen"])
                        if not self.calm and self.random.random() < LEAVES:
                            break
            except (*BROKEN, Broken):
                pass
            except Refused as problem:
                self.wrong.append(f"{self.name} was told {problem}")
                return
            await asyncio.sleep(self.random.uniform(0.02, REST))


def crew(places: list[Place], root: str, many: int, seed: int) -> list[Watcher]:
    """Create watchers for each transport. Some read slowly, some use the key of ROOT."""
    made = []
    for number in range(many):
        for road in ROADS:
            place = places[number % len(places)]
            by = root if road == "updates" and number % 2 else ""
            slow = number % 3 == 2  # noqa: PLR2004
            name = f"{road} {number} of {place.user}{' by root' if by else ''}{' (slow)' * slow}"
            random = Random(f"{seed}.{name}")  # noqa: S311 - no secret
            made.append(Watcher(name, place, road, random, slow, by))
    return made
