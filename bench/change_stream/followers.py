"""Those who follow an account, come and go, and must know all of it in the end."""

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

LEAVES = 0.05  # chance that a connection ends behind a batch
DIES = 0.3  # … and of these, that all is gone but what was kept
KEEPS = 0.1  # chance that a batch is kept, with its cursor
SLOW = {"socket": 0.8, "events": 0.8, "updates": 0.03, "asking": 0.8}  # seconds over a batch
REST = 0.4  # seconds that one who is away stays away, at most


@dataclass
class Watcher:
    """One who follows by one road, and has a replica of the account."""

    name: str
    place: Place
    road: str
    random: Random
    slow: bool = False
    by: str = ""  # the secret of who follows, where it is not the account's
    replica: Replica | None = None
    heard: int = 0  # events
    came: int = 0  # how often it has connected
    died: int = 0  # how often it went on from what it had kept
    afresh: list[str] = field(default_factory=list)  # why it has read the account again
    wrong: list[str] = field(default_factory=list)
    calm: bool = False  # it stays where it is, so that it may catch up
    _kept: Replica | None = field(default=None, repr=False)

    @property
    def at(self) -> int:
        """The newest event it knows; -1 where it knows nothing."""
        return self.replica.at if self.replica else -1

    async def run(self) -> None:
        """Follow until it is cancelled; ends by itself where the server says what it may not."""
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
        """Keep what is wrong with a replica that is about to be given up."""
        if self.replica and self.replica is not self._kept:
            known = self._kept.wrong if self._kept else []
            self.wrong += [f"{self.name}: {one}" for one in self.replica.wrong if one not in known]

    @property
    def complaints(self) -> list[str]:
        """All that it has found wrong."""
        mine = [f"{self.name}: {one}" for one in (self.replica.wrong if self.replica else [])]
        return list(dict.fromkeys([*self.wrong, *mine]))


@dataclass
class Counting:
    """One who hears of the counters of folders alone."""

    name: str
    place: Place
    random: Random
    counters: dict[str, tuple[int, int]] = field(default_factory=dict)  # total, unseen
    wrong: list[str] = field(default_factory=list)
    calm: bool = False

    async def run(self) -> None:
        """Follow until it is cancelled."""
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
    """So many watchers on each road, some of whom read slowly, and some by the key `root`."""
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
