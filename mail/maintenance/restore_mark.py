"""Detection of a restored database, by a mark in the object store.

The mark has the incarnation, a counter (beat) that increases with each mark, and the newest
positions of the streams that grew last. It is written some seconds after a change and at each clean
stop, never during a delivery. The database is written first, so an intact database is never older
than the mark. If it is older, it was restored, and a new incarnation begins.
"""

import asyncio
import logging
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from time import monotonic
from typing import Any

import orjson
from obstore.exceptions import BaseError
from sqlalchemy import event, select, text
from sqlalchemy.exc import DBAPIError
from sqlmodel import col

from models.events import incarnation
from models.events.incarnation import MARK, READ, Incarnation, incarnation_of
from models.events.journal import Stream
from models.events.wakeups import Gathering, rest
from models.runtime.environment import Turn, World
from models.store.outages import StoreUnavailable

log = logging.getLogger(__name__)

EVERY = 5.0  # seconds between two checks, and between two marks
IDLE = 60.0  # seconds between two marks if no stream grows
STREAMS = 500  # the last changed ones: a restore loses the newest changes
MOVED = "the database belongs to another PostgreSQL cluster, and the server was not stopped cleanly"
OTHER = "the mark in the object store belongs to another database"
MISSING = "the mark in the object store is missing"
OLDER = "the database is older than the mark in the object store"
BEHIND = "the database lacks changes that this server has made or seen"


@dataclass(frozen=True, slots=True)
class Cluster:
    """The system identifier of the PostgreSQL cluster; 0 if unknown or SQLite.

    The timeline is not compared: a failover without loss begins a new one, as a point-in-time
    recovery does. The positions of the streams show the difference.
    """

    system: int = 0


@dataclass(frozen=True, slots=True)
class RestoreMark:
    """The mark in the object store. The field names are its JSON keys."""

    store: str
    number: int
    base: int
    beat: int
    at: str = ""
    clean: bool = False  # written at a clean stop, so no change followed
    cluster: Cluster = Cluster()
    streams: Mapping[int, int] = field(default_factory=dict)  # the newest position of each

    @property
    def incarnation(self) -> Incarnation:
        """The incarnation of the mark."""
        return Incarnation(self.store, self.number, self.base, self.beat)


async def read_mark(world: World) -> RestoreMark | None:
    """Read the mark. Returns None if it is missing or damaged."""
    try:
        found: dict[str, Any] = orjson.loads(await world.blobs.get(MARK))
    except KeyError:
        return None
    except orjson.JSONDecodeError:
        log.warning("the mark of the incarnation cannot be read", extra={"object": MARK})
        return None
    found["streams"] = {int(key): int(last) for key, last in found["streams"].items()}
    found["cluster"] = Cluster(found["cluster"]["system"])
    return RestoreMark(**found)


async def write_mark(world: World, mark: RestoreMark) -> None:
    """Write the mark. Its beat must be in the database already."""
    plain = {**asdict(mark), "streams": {str(key): last for key, last in mark.streams.items()}}
    await world.blobs.put(MARK, orjson.dumps(plain))


async def read_cluster(world: World) -> Cluster:
    """Read the system identifier of PostgreSQL. It is unknown without the privilege."""
    if world.database.dialect == "sqlite":
        return Cluster()
    asked = text("SELECT system_identifier FROM pg_control_system()")
    try:
        async with world.database.engine.connect() as connection:
            row = (await connection.execute(asked)).one()
    except DBAPIError as problem:
        if getattr(problem.orig, "sqlstate", "") != "42501":  # insufficient_privilege
            raise
        return Cluster()
    return Cluster(int(row.system_identifier))


async def lost_streams(world: World, numbers: Mapping[int, int]) -> bool:
    """True if a stream in the database ends before the given position.

    Deleted streams are ignored, since the user may have been deleted.
    """
    if not numbers:
        return False
    asked = select(col(Stream.id), col(Stream.last)).where(col(Stream.id).in_(list(numbers)))
    return any(row.last < numbers[row.id] for row in await world.database.read(asked))


async def load(world: World) -> Incarnation:
    """Read the incarnation from the database and use it in this process."""
    found = incarnation_of(next(iter(await world.database.read(READ)), None))
    world.enter(found)
    return found


async def begin(
    world: World, reason: str, seen: Incarnation, mark: Incarnation | None = None
) -> Incarnation:
    """Begin a new incarnation, unless another process did so after `seen_incarnation` was read.

    `known_incarnation` is the newest one that is known outside the database.
    """
    now = world.now()

    def begin_if_unchanged(turn: Turn) -> Incarnation:
        held = incarnation.lock(turn.connection)
        if held.base != seen.base:
            return held
        known = mark or held
        above = Incarnation(
            held.store,
            max(held.number, known.number),
            max(held.base, known.base),
            max(held.beat, known.beat),
        )
        return incarnation.begin(turn.connection, above, reason=reason, at=now)

    begun = await world.apply(begin_if_unchanged)
    facts = {"reason": reason, "incarnation": begun.number}
    log.warning("the database was restored, so clients read their state again", extra=facts)
    world.enter(begun)
    return begun


class RestoreGuard:
    """Compares the database with the mark, at the start and regularly, and writes marks."""

    def __init__(self, world: World, *, writes: bool = True) -> None:
        self._world = world
        self._writes = writes  # one process of a server writes marks; all compare
        self._seen = Incarnation()
        self._numbers: dict[int, int] = {}  # of the streams that grew last, in this order
        self._reconnected = asyncio.Event()
        self._failing = False
        self._started = not writes  # the mark was compared, so it can be written

    async def prepare(self) -> None:
        """Call `start`, or leave that to `run` if the object store does not answer."""
        try:
            await self.start()
        except (BaseError, OSError, StoreUnavailable) as problem:
            facts = {"problem": type(problem).__name__}
            log.warning("the mark of the incarnation cannot be read yet", extra=facts)

    async def start(self) -> None:
        """Compare database and mark, begin a new incarnation if needed, and write a mark."""
        world = self._world
        store = secrets.token_hex(16)
        await world.apply(lambda transaction: incarnation.create(transaction.connection, store))
        found, mark = await load(world), await read_mark(world)
        cluster = await read_cluster(world)
        if mark is None and found.beat == 0:
            await write_mark(world, RestoreMark(found.store, found.number, found.base, 0))
        elif reason := await self._compare(found, mark, cluster):
            found = await begin(world, reason, found, mark.incarnation if mark else None)
        self._seen, self._started = found, True
        await self._beat()

    async def _compare(
        self, found: Incarnation, mark: RestoreMark | None, cluster: Cluster
    ) -> str | None:
        """The reason for a new incarnation. None if the database has lost nothing."""
        if mark is None:
            return MISSING
        if mark.store != found.store:
            return OTHER
        if mark.base > found.base or mark.beat > found.beat:
            return OLDER
        if mark.base == found.base and await lost_streams(self._world, mark.streams):
            return OLDER
        moved = 0 not in (mark.cluster.system, cluster.system)
        if moved and mark.cluster.system != cluster.system and not mark.clean:
            return MOVED
        return None

    async def run(self) -> None:
        """Check the database every `CHECK_INTERVAL` seconds, and at once after a reconnect."""
        world = self._world
        engine = world.database.engine.sync_engine
        watched = world.database.dialect != "sqlite"
        self._seen = self._seen if self._seen.store else await load(world)
        if watched:
            event.listen(engine, "connect", self._connected)
        try:
            with world.wakeups.gather() as bell:
                written = monotonic()
                while True:
                    await rest([self._reconnected], EVERY)
                    self._reconnected.clear()
                    grown = self._note(bell)
                    if await self._look(beat=grown or monotonic() - written > IDLE):
                        written = monotonic()
        finally:
            if watched:
                event.remove(engine, "connect", self._connected)

    def _connected(self, *_: object) -> None:
        self._reconnected.set()

    def _note(self, bell: Gathering) -> bool:
        """Remember the positions of the streams that have grown. Returns True if there are any."""
        numbers = {key: last for key, last in bell.numbers().items() if key >= 0 and last > 0}
        for key, last in numbers.items():
            known = self._numbers.pop(key, 0)
            self._numbers[key] = max(known, last)
        for key in list(self._numbers)[:-STREAMS]:
            del self._numbers[key]
        return bool(numbers)

    async def _look(self, *, beat: bool) -> bool:
        """Check the database, and write a mark if `write` is set. True if one was written."""
        try:
            if not self._started:
                await self.start()
            await self.compare()
            if beat and self._writes:
                await self._beat()
        except Exception as problem:  # noqa: BLE001 - any outage: the next check runs later
            if not self._failing:
                facts = {"problem": type(problem).__name__}
                log.warning("the mark of the incarnation cannot be kept", extra=facts)
            self._failing = True
            return False
        self._failing = False
        return beat

    async def compare(self) -> None:
        """Begin a new incarnation if the database is older than what this process has seen."""
        world, seen = self._world, self._seen
        found = incarnation_of(next(iter(await world.database.read(READ)), None))
        if found.store == seen.store and found.base > seen.base:
            self._enter(found)  # another process has begun it
            return
        older = found.store != seen.store or found.base < seen.base or found.beat < seen.beat
        if older or await lost_streams(world, self._numbers):
            if not found.store:
                store = seen.store
                await world.apply(
                    lambda transaction: incarnation.create(transaction.connection, store)
                )
            self._enter(await begin(world, BEHIND, found, seen))
            if self._writes:
                await self._beat()
            return
        self._seen = found

    def _enter(self, found: Incarnation) -> None:
        self._numbers.clear()
        self._seen = found
        self._world.enter(found)

    async def _beat(self, *, clean: bool = False) -> None:
        """Increase the beat in the database, then write the mark with it."""
        world = self._world
        found = await world.apply(lambda transaction: incarnation.advance(transaction.connection))
        if found.beat <= self._seen.beat:
            return  # restored since the last check; the next one detects it
        if found.base != world.incarnation.base:
            self._enter(found)  # another process has begun it
        self._seen = found
        mark = RestoreMark(
            found.store,
            found.number,
            found.base,
            found.beat,
            world.now().isoformat(),
            clean,
            await read_cluster(world),
            dict(self._numbers),
        )
        await write_mark(world, mark)

    async def stop(self) -> None:
        """Write the mark of a clean stop, if the mark was compared before."""
        if not self._started:
            return
        with suppress(Exception):  # the database may be the reason for the stop
            await self._beat(clean=True)


async def restored(world: World) -> Incarnation:
    """Begin a new incarnation after database and objects were restored to the same time."""
    store = secrets.token_hex(16)
    await world.apply(lambda transaction: incarnation.create(transaction.connection, store))
    found, mark = await load(world), await read_mark(world)
    await begin(world, "merganser check --restored", found, mark.incarnation if mark else None)
    await RestoreGuard(world).start()
    return world.incarnation
