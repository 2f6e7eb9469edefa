"""The worker: takes what is due and hands it over, a few destinations at once."""

import asyncio
import contextlib
import logging
import ssl
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from mail import routes
from mail.compose import without_bcc
from mail.contents import gathered
from mail.outward import Gate
from mail.queue import body, claims, local, transport, vias
from mail.queue.jobs import Job, Pace, Result
from mail.queue.letters import Letter
from mail.queue.settle import settle
from mail.queue.transport import LeaseLost, NotReached
from mail.routing import Route, Unroutable, hosts
from models.queue import QUEUE, DeliveryState
from models.world import World

log = logging.getLogger(__name__)

USUAL = Pace()
SOON = 0.05  # seconds; what is due may be in the hands of another worker
TOO_LATE = "the lease has passed to another worker"


@dataclass(eq=False)
class Lane:
    """Jobs for one domain, done one after another."""

    domain: str
    jobs: list[Job]  # those not done yet
    sending: bool = False  # the dot may be out: from here on the answer is waited for
    task: "asyncio.Task[None] | None" = None


@dataclass
class Worker:
    """What is under way."""

    world: World
    route: Route
    pace: Pace = USUAL
    lanes: set[Lane] = field(default_factory=set)
    turns: asyncio.Semaphore = field(init=False)
    stopping: bool = False
    held_back: bool = False  # the last look left out what would have been too much at once
    freed: asyncio.Event = field(default_factory=asyncio.Event)  # a lane has ended
    trust: ssl.SSLContext = field(init=False)

    def __post_init__(self) -> None:
        self.turns = asyncio.Semaphore(self.pace.at_once)
        self.trust = self.route.trust or ssl.create_default_context()


async def run(world: World, route: Route, *, stop: asyncio.Event, pace: Pace = USUAL) -> None:
    """Send until told to stop; then what has not come to its final dot is given back.

    Wakes for the bell QUEUE, for the next attempt that is due, and by itself.
    """
    worker = Worker(world, route, pace)
    with world.wakeups.listen([QUEUE]) as bell:
        async with _heartbeat(worker):
            try:
                while not stop.is_set():
                    bell.clear()  # before we look: what comes from here on rings again
                    worker.freed.clear()
                    pause = await _look(worker)
                    await _rest(worker, (bell, stop), pause)
            finally:
                await _wind_up(worker, graceful=stop.is_set())


async def _look(worker: Worker) -> float:
    """Begin what is due; returns the seconds until there may be more."""
    pace, busy = worker.pace, _busy(worker)
    crowded = len(worker.lanes) >= pace.at_once
    worker.held_back = crowded or bool(busy)
    if crowded:
        return pace.look
    try:
        claimed = await claims.claim(worker.world, pace, busy)
    except Exception:  # the store may be back when we look again
        log.exception("the queue could not be read")
        return pace.look
    if claimed.uncertain:
        log.warning("mail may arrive twice", extra={"recipients": claimed.uncertain})
    by_domain: defaultdict[str, list[Job]] = defaultdict(list)
    for job in claimed.jobs:
        by_domain[job.domain].append(job)
    for domain, jobs in by_domain.items():
        lane = Lane(domain, jobs)
        lane.task = asyncio.create_task(_drive(worker, lane))
        worker.lanes.add(lane)
    if claimed.many == pace.claim:
        return 0.0
    if claimed.next_at is None:
        return pace.look
    wait = (claimed.next_at - worker.world.now()).total_seconds()
    return min(max(wait, SOON), pace.look)


def _busy(worker: Worker) -> list[str]:
    """Domains that have as many connections as they should."""
    if worker.route.next_hop:
        return []
    many = Counter(lane.domain for lane in worker.lanes)
    return [domain for domain, count in many.items() if count >= worker.pace.per_domain]


async def _rest(worker: Worker, events: Sequence[asyncio.Event], pause: float) -> None:
    """Wait for one of the events, for the time, or, where we could do no more, for a lane."""
    crowded = worker.held_back or len(worker.lanes) >= worker.pace.at_once
    told = [*events, worker.freed] if crowded else events
    waits = [asyncio.ensure_future(event.wait()) for event in told]
    try:
        await asyncio.wait(waits, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def _drive(worker: Worker, lane: Lane) -> None:
    """Do the jobs of a lane."""
    try:
        async with worker.turns:
            while lane.jobs and not worker.stopping:
                await _attempt(worker, lane, lane.jobs[0])
                lane.sending = False
                lane.jobs.pop(0)
    finally:
        if not lane.jobs:
            worker.lanes.discard(lane)
            worker.freed.set()


async def _attempt(worker: Worker, lane: Lane, job: Job) -> None:
    """Do a job, come what may."""
    try:
        await _do(worker, lane, job)
    except LeaseLost:
        log.warning(TOO_LATE, extra={"queue": job.queue_id})
    except Exception:  # one bad message must not stop the others
        log.exception("sending broke", extra={"queue": job.queue_id})
        later = DeliveryState.DEFERRED
        broken = Result(later, 451, "4.3.0 Something broke on our side", after_dot=lane.sending)
        try:
            await settle(worker.world, job, _all(job, broken), b"")
        except Exception:  # the store is gone: the lease ends by itself, and then it is tried again
            log.exception("that could not be written", extra={"queue": job.queue_id})


async def _do(worker: Worker, lane: Lane, job: Job) -> None:
    world = worker.world
    if job.via is None and await routes.is_ours(world, job.domain):
        raw = await body.message(world, job)
        await settle(world, job, await local.deliver(world, job, raw), raw)
        return
    letter = await _letter(world, job)
    gate = Gate(world.options.forwards_private, worker.route.trust)
    if vias.is_page(job):
        await settle(
            world, job, _all(job, await vias.posted(world, job, letter, gate)), letter.head
        )
        return
    try:
        if job.via is None:
            servers = await hosts(world, worker.route, job.domain)
        else:
            servers = await vias.relays(world, job, gate)
    except Unroutable as problem:
        refused = Result.refused(problem.code, problem.text)
        await settle(world, job, _all(job, refused), letter.head)
        return
    last = Result.refused(451, "4.4.1 No server answered")
    for host in servers:
        try:
            async with transport.connected(
                host, worker.pace, hostname=world.options.hostname, trust=worker.trust
            ) as channel:
                await _hand_over(worker, lane, channel, letter)
                return
        except NotReached as problem:  # the next one may do better
            last = Result(DeliveryState.DEFERRED, problem.code, problem.text, host.name)
    await settle(world, job, _all(job, last), letter.head)


async def _letter(world: World, job: Job) -> Letter:
    """What is sent; one that is large is not whole in memory, where it goes to a server."""
    stored = await body.stored(world, job)
    if stored.size < body.LARGE or vias.is_page(job):
        return await asyncio.to_thread(_whole, job, await gathered(stored.whole()))
    return await Letter.flowing(job.sender, stored.whole)


def _whole(job: Job, raw: bytes) -> Letter:
    return Letter.of(job.sender, without_bcc(raw))


async def _hand_over(
    worker: Worker, lane: Lane, channel: transport.Channel, letter: Letter
) -> None:
    """Send a job over an open connection, and write its results before we say goodbye."""
    job = lane.jobs[0]

    async def before_dot(ids: Sequence[int]) -> None:
        if not await claims.still_held(worker.world, job, ids):
            raise LeaseLost
        worker.world.fault("dot")
        lane.sending = True

    results = await transport.transmit(channel, letter, job.recipients, before_dot)
    worker.world.fault("sent")
    await settle(worker.world, job, results, letter.head)
    lane.sending = False


def _all(job: Job, result: Result) -> dict[int, Result]:
    return {to.delivery_id: result for to in job.recipients}


@asynccontextmanager
async def _heartbeat(worker: Worker) -> AsyncGenerator[None]:
    """Hold the leases of all that is under way."""

    async def beat() -> None:
        while True:
            await asyncio.sleep(worker.pace.lease.total_seconds() / 3)
            leases = {job.lease for lane in worker.lanes for job in lane.jobs}
            try:
                if leases:
                    await claims.extend(worker.world, worker.pace, leases)
            except Exception:  # the next beat may come in time; else the lease is lost
                log.exception("leases could not be extended")

    beating = asyncio.create_task(beat())
    try:
        yield
    finally:
        beating.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await beating


async def _wind_up(worker: Worker, *, graceful: bool) -> None:
    """End what is under way: what has sent its dot waits for the answer, the rest is dropped."""
    worker.stopping = True
    lanes = list(worker.lanes)
    for lane in lanes:
        if lane.task and not (graceful and lane.sending):
            lane.task.cancel()
    await asyncio.gather(*(lane.task for lane in lanes if lane.task), return_exceptions=True)
    left = [job for lane in lanes for job in lane.jobs]
    if left and graceful:
        await claims.hand_back(worker.world, left)
