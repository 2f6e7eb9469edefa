"""Prove that no change is lost: a follower of an account knows what its database contains."""

import asyncio
import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import orjson
from sqlalchemy import func, select
from sqlmodel import col

from bench.change_stream import account_replica
from bench.change_stream.follow_transports import Place
from bench.change_stream.followers import Counting, Watcher, crew
from bench.change_stream.random_writers import Writer, letter
from bench.servers.bus_servers import Bus
from bench.servers.merganser_process import Server, checked, stop
from graph.types.global_ids import decode, encode
from mail.maintenance import housekeeping
from mail.recipients import address_resolution
from mail.storage import received_messages
from merganser.commands import domain_operations, user_operations
from merganser.commands.user_operations import Key
from merganser.server.environment_factory import opened
from merganser.settings.settings import Settings
from models.admin.tasks import Task
from models.messages.tables import Message
from models.runtime.environment import World
from models.users.roles import Role
from resolvers.users.creation.create import NewUser

NAMES = ("ada", "bob")
BEGUN = 100  # messages per account
OVERFLOW = 500  # changes
KEPT = 1500  # changes left in a trimmed journal
CALM = 1.0  # seconds without a change that count as the end
PATIENCE = 120.0  # seconds
AGAIN = 5  # the database of a killed server may be locked for a moment
EXPECTED = (  # log events that kills cause
    "the first process has ended, so this one ends too",
    "a process ended, another takes its place",
)
SHOWN = 5  # per watcher
ACTS = ("cut", "mend", "kill", "trim", "cut", "first", "mend", "one")

Told = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """The extent of one proof."""

    changes: int
    seed: int = 1
    acts: Sequence[str] = ACTS  # disturbances, in this order
    writers: int = 8
    watchers: int = 3  # per transport
    longest: float = 300.0  # seconds, of the writing


@dataclass
class Verdict:
    """The result of one proof."""

    seed: int
    changes: int = 0
    done: Counter[str] = field(
        default_factory=Counter
    )  # operations of the writers and disturbances
    watchers: list[Watcher] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    @property
    def refused(self) -> float:
        """The share of requests that were refused, interrupted or only validated."""
        names = ("tried", "refused", "broken off")
        asked = {name: many for name, many in self.done.items() if ": " in name}
        some = sum(many for name, many in asked.items() if name.endswith(names))
        return some / max(1, sum(asked.values()))

    def __str__(self) -> str:
        """Return a summary in one paragraph."""
        afresh = Counter(why for one in self.watchers for why in one.afresh)
        return (
            f"seed {self.seed}: {self.changes} changes, {self.refused:.0%} of what was asked "
            f"left nothing; {len(self.watchers)} watchers heard "
            f"{sum(one.heard for one in self.watchers)} events, connected "
            f"{sum(one.came for one in self.watchers)} times, went on from what they had kept "
            f"{sum(one.died for one in self.watchers)} times, read afresh {dict(afresh)}; "
            f"{len(self.differences)} differences."
        )


@dataclass
class House:
    """A server with its bus and accounts that is killed and started again."""

    server: Server
    bus: Bus
    world: World
    users: list[int]
    secrets: list[str]
    root: str
    process: asyncio.subprocess.Process | None = None

    def place(self, nth: int) -> Place:
        """Return the endpoint of an account."""
        return Place(self.server.http, self.secrets[nth], encode("User", self.users[nth]))

    async def start(self) -> None:
        """Start the server. Repeats it while the database of a killed one is locked."""
        for left in reversed(range(AGAIN)):
            try:
                self.process = await self.server.start()
            except RuntimeError:
                if not left:
                    raise
                await asyncio.sleep(0.3)
            else:
                return

    async def kill(self, *, first: bool = False) -> None:
        """Kill the server with SIGKILL.

        Of several processes all, or the first, after which all end.
        """
        if self.process:
            with suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()
            if not first:
                for pid in _session(self.process.pid):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            async with asyncio.timeout(PATIENCE):
                while _session(self.process.pid):  # noqa: ASYNC110 - processes send no wake-up
                    await asyncio.sleep(0.02)
            self.process = None

    async def kill_one(self) -> None:
        """Kill one child process; restart the server if it has none."""
        children = _children(self.process.pid) if self.process and self.server.words else []
        if children:
            os.kill(children[0], signal.SIGKILL)
            return
        await self.kill()
        await self.start()

    async def standing(self) -> list[int]:
        """Return the number of the newest event of each account."""
        return [(await account_replica.numbers(self.world.database, one))[0] for one in self.users]


def _session(first: int) -> list[int]:
    """Return the processes of the session that this process leads."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            state, _parent, _group, session = path.read_text().rpartition(") ")[2].split()[:4]
            if int(session) == first and state != "Z":
                found.append(int(path.parent.name))
    return found


def _children(pid: int) -> list[int]:
    """Return the child processes of a process."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def settings_of(server: Server, **more: Any) -> Settings:
    """Return settings for a command that uses the database of a server."""
    url: dict[str, Any] = {"store": server.store} if server.store else {}
    return Settings(data=server.folder, **url, **more)


async def prove(server: Server, bus: Bus, plan: Plan, *, told: Told = lambda _: None) -> Verdict:
    """Run writers, watchers and disturbances on an empty folder. Returns the differences."""
    server.more |= {"MERGANSER_CHANGES_OVERFLOW": str(OVERFLOW)}
    async with opened(settings_of(server), migrate=True) as world:
        house = await _furnished(server, bus, world)
        try:
            await house.start()
            verdict = await _played(house, plan, told)
            verdict.differences += await _ended(house)
        finally:
            await house.kill()
    verdict.differences += await checked(server)
    return verdict


async def _furnished(server: Server, bus: Bus, world: World) -> House:
    """Create the accounts with their first messages."""
    users, secrets = list[int](), list[str]()
    await domain_operations.add(world, "example.org", {}, with_key=False)
    for name in NAMES:
        new = NewUser(name, address=f"{name}@example.org", password_disabled=True, quota=0)
        users.append(decode("User", (await user_operations.add(world, new))[0]))
        secrets.append((await user_operations.make_key(world, Key(name, name)))[1])
    root = (await user_operations.make_key(world, Key("root", role=Role.ROOT)))[1]
    for nth, name in itertools.product(range(BEGUN), NAMES):
        to = await address_resolution.recipient(world, f"{name}@example.org")
        mail = await received_messages.read(letter(f"{name} {nth}"))
        await received_messages.receive(world, mail, to, "carol@example.com")
    return House(server, bus, world, users, secrets, root)


async def _played(house: House, plan: Plan, told: Told) -> Verdict:
    """Run writers and watchers, and compare the replicas with the database at the end."""
    random = Random(plan.seed)  # noqa: S311 - no secret
    verdict, many = Verdict(plan.seed), range(len(NAMES))
    places = [house.place(nth) for nth in many]
    verdict.watchers = crew(places, house.root, plan.watchers, plan.seed)
    counting = [
        Counting(f"counters of {name}", place, Random(f"{plan.seed}.{name}"))  # noqa: S311
        for name, place in zip(NAMES, places, strict=True)
    ]
    mailed = [f"{name}@example.org" for name in NAMES]
    writers = [
        Writer(
            places, mailed, house.server.lmtp,
            Random(f"{plan.seed}.w{nth}"),  # noqa: S311 - no secret
            name=f"w{nth}",
        )
        for nth in range(plan.writers)
    ]  # fmt: skip
    followers: list[Watcher | Counting] = [*verdict.watchers, *counting]
    tasks = [asyncio.create_task(one.run()) for one in followers]
    writing = [asyncio.create_task(one.run()) for one in writers]
    before = sum(await house.standing())
    try:
        verdict.differences += await _wrought(house, plan, random, (before, told, writing), verdict)
        verdict.differences += await _over(writing)
        await house.bus.mend()
        targets = await _quiet(house)
        verdict.changes = sum(targets) - before
        for one in followers:
            one.calm = True
        known = dict(zip((place.user for place in places), targets, strict=True))
        await _until(lambda: all(one.at >= known[one.place.user] for one in verdict.watchers))
        verdict.differences += await _compared(house, verdict.watchers, counting)
    finally:
        await _over(writing)
        broken = await _over(tasks)
    verdict.differences += broken
    verdict.done += sum((one.done for one in writers), Counter[str]())
    return verdict


async def _over(tasks: Sequence[asyncio.Task[None]]) -> list[str]:
    """Cancel tasks, and return the errors of those that ended before."""
    for task in tasks:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    return [repr(one) for one in ends if isinstance(one, Exception)]


async def _wrought(
    house: House,
    plan: Plan,
    random: Random,
    known: tuple[int, Told, list[asyncio.Task[None]]],
    verdict: Verdict,
) -> list[str]:
    """Apply the disturbances one after another until there are enough changes.

    Returns errors.
    """
    before, told, writing = known
    acts = list(plan.acts)
    step, until = plan.changes / (len(acts) + 1), time.monotonic() + plan.longest
    at = 0
    while acts or at < plan.changes:
        if time.monotonic() > until:
            return [f"{at} changes in {plan.longest} s: {plan.changes} were to be made"]
        if any(one.done() for one in writing):
            return ["a writer has ended by itself"]
        await asyncio.sleep(random.uniform(0.05, 0.15))
        at = sum(await house.standing()) - before
        told(min(at, plan.changes))
        if acts and at >= (len(plan.acts) + 1 - len(acts)) * step:
            act = acts.pop(0)
            verdict.done[act] += 1
            await _act(house, act)
    return []


async def _act(house: House, act: str) -> None:
    """Apply one disturbance by its name."""
    if act == "cut":
        await house.bus.cut()
    elif act == "mend":
        await house.bus.mend()
    elif act in ("kill", "first"):
        await house.kill(first=act == "first")
        await house.start()
    elif act == "one":
        await house.kill_one()
    elif act == "trim":
        async with opened(settings_of(house.server, journal_events=KEPT)) as world:
            await housekeeping.tidy(world, sweep=False)


async def _quiet(house: House) -> list[int]:
    """Wait until no task, snooze or change is left. Returns the newest event of each account."""
    read = house.world.database.read
    tasks = select(func.count()).select_from(Task).where(col(Task.finished_at).is_(None))
    snoozed = select(func.count()).select_from(Message)
    snoozed = snoozed.where(col(Message.snoozed_until).is_not(None))
    snoozed = snoozed.where(col(Message.archived_at).is_(None))
    async with asyncio.timeout(PATIENCE):
        since, was = time.monotonic(), await house.standing()
        while True:
            await asyncio.sleep(0.1)
            now = await house.standing()
            ((open_tasks,),), ((asleep,),) = await read(tasks), await read(snoozed)
            if now != was or open_tasks or asleep:
                since, was = time.monotonic(), now
            if time.monotonic() - since >= CALM:
                return now


async def _until(true: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait until a condition is true, or the timeout is over."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = true()
        if found if isinstance(found, bool) else await found:
            return
        await asyncio.sleep(0.05)


async def _compared(
    house: House, watchers: Iterable[Watcher], counting: Sequence[Counting]
) -> list[str]:
    """Return the differences between the watchers and the database."""
    found, database = list[str](), house.world.database
    for nth, user in enumerate(house.users):
        truth = await account_replica.stored(database, user)
        last, _ = await account_replica.numbers(database, user)
        found += [f"{NAMES[nth]}: {one}" for one in await account_replica.gaps(database, user)]
        for one in watchers:
            if one.place.user == encode("User", user):
                found += one.complaints
                found += await _difference(house, one, truth, (user, last))
        mine = counting[nth]
        real = {key: counts for key, (_, *counts) in truth[0].items()}
        await _until(lambda: _agree(mine, real))  # noqa: B023 - it is over before the next
        found += mine.wrong
        for key, counts in real.items():
            if list(mine.counters.get(key, ())) != counts:
                found.append(f"{mine.name}: {key} has {counts}, told {mine.counters.get(key)}")
    return found


def _agree(mine: Counting, real: dict[str, list[int]]) -> bool:
    """True if a watcher has received these counters."""
    return all(list(mine.counters.get(key, ())) == counts for key, counts in real.items())


async def _difference(
    house: House, one: Watcher, truth: account_replica.State, known: tuple[int, int]
) -> list[str]:
    """Return the differences of one watcher with the events that concern them."""
    user, last = known
    if one.replica is None or one.at != last:
        return [f"{one.name} knows the events up to {one.at}, and there are {last}"]
    wrong = account_replica.differences(one.replica.state, truth)
    some = dict(list(wrong.items())[:SHOWN])
    events = await account_replica.concerning(house.world.database, user, some)
    found = []
    for key, text in some.items():
        found.append(f"{one.name} (since {one.replica.sure}): {text}")
        found += [f"    {event}" for event in events[key]]
    if len(wrong) > SHOWN:
        found.append(f"{one.name}: {len(wrong) - SHOWN} more")
    return found


async def _ended(house: House) -> list[str]:
    """Stop the server, and return its unexpected log entries."""
    if house.process is None:
        return ["the server was not there in the end"]
    code = await stop(house.process)
    found = [f"the server ended with {code}"] if code else []
    for line in (house.server.folder / "server.log").read_text().splitlines():
        fact = orjson.loads(line) if line.startswith("{") else {"level": "error", "event": line}
        if fact["event"] in EXPECTED:
            continue
        if fact["level"] == "error" or "traceback" in fact:
            found.append(f"the server said {line[-1500:]}")
    return found[:SHOWN]
