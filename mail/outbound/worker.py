"""The queue worker: leases due recipients and delivers to several destinations at once."""

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from mail.compose.message_builder import without_bcc
from mail.delivery import local_delivery
from mail.envelope.delivery_jobs import TOGETHER, Job, Pace, Result, To
from mail.network.outbound_http import Gate
from mail.outbound import destination_pacing, relay_delivery, smtp_client
from mail.outbound.connection_pool import Pool
from mail.outbound.destination_pacing import Pacing
from mail.outbound.dkim_signing import signed
from mail.outbound.smtp_client import LeaseLost, NotReached
from mail.outbound.tls_client import Contexts
from mail.outbound.wire_format import Letter
from mail.queue import dsn_requests, message_body, pending_reports, recipient_leases
from mail.queue.delivery_results import settle
from mail.queue.destination_order import LAST, Room, Round
from mail.recipients import recipient_routes
from mail.routing import route_selection, tls_requirements
from mail.routing.mx_hosts import Host, Route, Unroutable
from mail.routing.route_selection import Way
from mail.routing.route_snapshot import Chart
from mail.runtime.background_loops import running_in_background
from mail.storage.blobs.errors import Corrupt
from mail.storage.message_content import gathered
from models.events.wakeups import QUEUE
from models.queue.tables import DeliveryState
from models.runtime import leases
from models.runtime.environment import Turn, World
from models.store.outages import StoreUnavailable

log = logging.getLogger(__name__)

USUAL = Pace()
SOON = 0.05  # seconds; due recipients may be locked by another worker
SMALL = 100_000  # larger messages are converted in a thread
AGAIN, SELDOM = 0.2, 5.0  # seconds between attempts to write results
TOO_LATE = "the lease has passed to another worker"


@dataclass(eq=False)
class Lane:
    """Jobs for one domain, processed one after another."""

    domain: str
    jobs: list[Job]  # unfinished jobs; the first one without recipients that have a result
    sending: bool = False  # the final dot may be sent, so a stop must wait for the reply
    task: "asyncio.Task[None] | None" = None


@dataclass
class Worker:
    """The state of a queue worker: lanes, connections and pacing."""

    world: World
    route: Route
    pace: Pace = USUAL
    lanes: set[Lane] = field(default_factory=set)
    turns: asyncio.Semaphore = field(init=False)
    stopping: bool = False
    held_back: bool = False  # the last poll left out due recipients, for lack of capacity
    freed: asyncio.Event = field(default_factory=asyncio.Event)  # set when a lane ends
    round: Round = field(default_factory=Round)
    pool: Pool = field(init=False)
    chart: Chart = field(init=False)
    pacing: Pacing = field(default_factory=lambda: Pacing(asyncio.get_running_loop().time))

    def __post_init__(self) -> None:
        self.turns = asyncio.Semaphore(self.pace.at_once)
        contexts = Contexts(self.route.trust)
        self.pool = Pool(self.world, self.pace, contexts, lambda: len(self.lanes))
        self.chart = Chart(self.world, self.route)


async def run(world: World, route: Route, *, stop: asyncio.Event, pace: Pace = USUAL) -> None:
    """Deliver queued mail until `stop` is set. Then unattempted recipients return to the queue.

    It polls after a wake-up, at the time of the next attempt, and every `poll_interval` seconds.
    """
    worker = Worker(world, route, pace)
    with world.wakeups.listen([QUEUE]) as bell:
        async with (
            _leasing(worker),
            running_in_background(pending_reports.make_good_regularly(world, pace)),
        ):
            try:
                while not stop.is_set():
                    bell.clear()  # before the poll, so that a later wake-up is not lost
                    worker.freed.clear()
                    pause = await _look(worker)
                    await _rest(worker, (bell, stop), pause)
            finally:
                await _wind_up(worker, graceful=stop.is_set())


async def _look(worker: Worker) -> float:
    """Lease due recipients and start lanes for them. Returns the seconds until the next poll."""
    pace = worker.pace
    worker.held_back = len(worker.lanes) >= pace.at_once
    if worker.held_back:
        return pace.look
    try:
        claimed = await recipient_leases.claim(worker.world, pace, _room(worker), worker.round)
    except Exception:  # the database may be available at the next poll
        log.exception("the queue could not be read")
        return pace.look
    if claimed.uncertain:
        log.warning("mail may arrive twice", extra={"recipients": claimed.uncertain})
    worker.held_back = claimed.left
    by_domain: defaultdict[str, list[Job]] = defaultdict(list)
    for job in claimed.jobs:
        by_domain[job.domain].append(job)
    if by_domain:
        worker.chart = Chart(worker.world, worker.route)  # reads changed routes again
    for domain, jobs in by_domain.items():
        lane = Lane(domain, jobs)
        lane.task = asyncio.create_task(_drive(worker, lane))
        worker.lanes.add(lane)
    if claimed.more:
        return 0.0
    if claimed.next_at is None:
        return pace.look
    wait = (claimed.next_at - worker.world.now()).total_seconds()
    return min(max(wait, SOON), pace.look)


def _room(worker: Worker) -> Room:
    """The capacity for new jobs. A quarter of the lanes is kept for ranks other than the last."""
    pace = worker.pace
    last = sum(lane.jobs[0].rank == LAST for lane in worker.lanes if lane.jobs)
    return Room(
        pace.claim,
        pace.at_once - len(worker.lanes),
        max(pace.at_once - pace.at_once // 4 - last, 0),
        _busy(worker),
    )


def _busy(worker: Worker) -> list[str]:
    """Domains that have as many connections as allowed."""
    if worker.route.next_hop:
        return []
    many = Counter(lane.domain for lane in worker.lanes)
    most = worker.pace.per_domain or worker.world.options.send_per_domain
    return [domain for domain, count in many.items() if count >= most]


async def _rest(worker: Worker, events: Sequence[asyncio.Event], pause: float) -> None:
    """Wait for an event, the timeout, or the end of a lane if there is no capacity left."""
    crowded = worker.held_back or len(worker.lanes) >= worker.pace.at_once
    told = [*events, worker.freed] if crowded else events
    waits = [asyncio.ensure_future(event.wait()) for event in told]
    try:
        await asyncio.wait(waits, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def _drive(worker: Worker, lane: Lane) -> None:
    """Process the jobs of a lane in order."""
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
    """Attempt a job. Errors defer its recipients and are logged."""
    try:
        await _do(worker, lane, job)
    except LeaseLost:
        log.warning(TOO_LATE, extra={"queue": job.queue_id})
    except Corrupt as damage:  # a repair or restore is possible before the message expires
        extra = {"queue": job.queue_id, "damage": str(damage)}
        log.warning("a queued message is damaged", extra=extra)
        await _defer(worker, lane, "4.3.0 The stored message is damaged")
    except Exception:  # a failing message must not stop the others
        log.exception("sending broke", extra={"queue": job.queue_id})
        await _defer(worker, lane, "4.3.0 Something broke on our side")


async def _defer(worker: Worker, lane: Lane, reason: str) -> None:
    """Defer all recipients of the current job of a lane."""
    job = lane.jobs[0]
    result = Result(DeliveryState.DEFERRED, 451, reason, after_dot=lane.sending)
    try:
        await _settled(worker, lane, _all(job, result), b"")
    except Exception:  # the database does not answer
        log.exception("that could not be written", extra={"queue": job.queue_id})
        recipient_leases.abandon(worker.world, lane.jobs[0])


async def _do(worker: Worker, lane: Lane, job: Job) -> None:
    """Deliver a job: locally, to a webhook, or by SMTP over the route of each recipient."""
    world = worker.world
    if job.via is None and await worker.chart.once(
        "ours", job.domain, lambda: recipient_routes.is_ours(world, job.domain)
    ):
        raw = await message_body.message(world, job)
        await _settled(worker, lane, await local_delivery.deliver(world, job, raw), raw)
        job = lane.jobs[0]
        if not job.recipients:
            return
    if relay_delivery.is_page(job):
        letter = await signed(world, job, await _letter(world, job))
        gate = _gate(worker)
        posted = await relay_delivery.posted(world, job, letter, gate)
        await _settled(worker, lane, _all(job, posted), letter.head)
        return
    found = await _parts(worker, job)
    if not found:
        return
    letter = await signed(world, job, await _letter(world, job))
    for part in found:
        one = len(part.recipients) == len(job.recipients)
        each = job if one else replace(job, recipients=part.recipients)
        await _send(worker, lane, each, (part, letter))


async def _settled(worker: Worker, lane: Lane, results: Mapping[int, Result], raw: bytes) -> None:
    """Record results of the current job and remove these recipients from it."""
    if results:
        await _write_results(worker, lane.jobs[0], results, raw)
        lane.jobs[0] = local_delivery.left(lane.jobs[0], results)


async def _write_results(
    worker: Worker, job: Job, results: Mapping[int, Result], raw: bytes
) -> None:
    """Record results, and repeat that while the database is unavailable.

    Otherwise a message that another server accepted would be sent a second time.
    """
    pause = AGAIN
    while True:
        try:
            await settle(worker.world, job, results, raw)
        except StoreUnavailable:
            log.warning("results wait for the store", extra={"queue": job.queue_id})
            await asyncio.sleep(pause)
            pause = min(pause * 2, SELDOM)
        else:
            return


def _left(lane: Lane, job: Job) -> Job:
    """The job, or part of the current job, without recipients that have a recorded result."""
    if job is lane.jobs[0]:
        return job
    left = {recipient.delivery_id for recipient in lane.jobs[0].recipients}
    return replace(
        job, recipients=[recipient for recipient in job.recipients if recipient.delivery_id in left]
    )


async def _parts(worker: Worker, job: Job) -> list[route_selection.Part]:
    """Group the recipients of a job by route, and wait for their delivery slots.

    Recipients with a slot that is too late return to the queue.
    """
    if job.via is None:
        found = await route_selection.parts(worker.chart, job)
    else:
        found = [await _by_via(worker, job)]
    rate, ready = worker.world.options.send_per_minute, list[route_selection.Part]()
    for part in found:
        place = part.way.place if isinstance(part.way, Way) else ""
        wait = await destination_pacing.turn(worker.world, place, rate) if place and rate else 0.0
        if wait >= destination_pacing.WAITED:
            put_off = replace(job, recipients=part.recipients)
            await recipient_leases.hand_back(worker.world, [put_off], later=[wait])
            continue
        if wait:
            await asyncio.sleep(wait)
        ready.append(part)
    return ready


def _gate(worker: Worker) -> Gate:
    """The network policy for the hosts that users forward mail to."""
    options = worker.world.options
    return Gate.of(options, private=options.forwards_private, trust=worker.route.trust)


async def _by_via(worker: Worker, job: Job) -> route_selection.Part:
    """The route part of a job that goes to the relay of a forward."""
    gate = _gate(worker)
    try:
        found = await relay_delivery.relays(worker.world, job, gate)
    except Unroutable as problem:
        return route_selection.Part(job.recipients, problem)
    servers = tls_requirements.required(found, [], wanted=job.tls)
    return route_selection.Part(job.recipients, Way(servers, place=str(job.via)))


async def _send(
    worker: Worker, lane: Lane, job: Job, what: tuple[route_selection.Part, Letter]
) -> None:
    """Send a part of a job to the first host of its route that accepts it."""
    part, letter = what
    if isinstance(part.way, Unroutable):
        last = Result.refused(part.way.code, part.way.text)
        await _settled(worker, lane, _all(job, last), letter.head)
        return
    place, down, begun = part.way.place, True, worker.world.now()
    if dead := worker.pacing.dead(place, job.hurried_at):  # no attempt is made
        await _settled(worker, lane, _all(job, dead), letter.head)
        return
    last = Result.refused(451, "4.4.1 No server answered")
    for host in part.way.servers:
        try:
            await _by_host(worker, lane, job, (host, letter))
        except NotReached as problem:  # the next host may accept it
            last = Result(DeliveryState.DEFERRED, problem.code, problem.text, host.name)
            down = down and problem.down
        else:
            worker.pacing.answered(place)
            return
    if down:
        worker.pacing.failed(place, last, begun)
    await _settled(worker, lane, _all(_left(lane, job), last), letter.head)


async def _by_host(worker: Worker, lane: Lane, job: Job, what: tuple[Host, Letter]) -> None:
    """Send the remaining recipients of a job to a host. Raises ServerFailed.

    If a reused connection fails, or one that has delivered a part, it connects again.
    """
    host, letter = what
    died = False
    while True:
        used, left = 0, _left(lane, job)
        try:
            async with worker.pool.lent(host) as channel:
                used = channel.messages
                await _hand_over(worker, lane, channel, (left, letter))
                return
        except NotReached:
            went_on = len(_left(lane, job).recipients) < len(left.recipients)
            if not (used or went_on):
                raise
            if died and not went_on:
                text = f"4.4.2 {host.name} closes connections that it just opened"
                raise NotReached(451, text, down=True) from None
            died = not went_on
            await worker.pool.fresh(host)


async def _letter(world: World, job: Job) -> Letter:
    """Load the wire message of a job. Large messages are streamed to SMTP servers."""
    stored = await message_body.stored(world, job)
    if stored.size < SMALL:  # a thread would take longer than the work
        return _whole(job, await gathered(stored.whole()))
    if stored.size < message_body.LARGE or relay_delivery.is_page(job):
        return await asyncio.to_thread(_whole, job, await gathered(stored.whole()))
    flowing = await Letter.flowing(job.sender, stored.whole)
    if flowing.long and job.user_id is not None:  # a stream can't be encoded again
        return await asyncio.to_thread(_whole, job, await gathered(stored.whole()))
    return flowing


def _whole(job: Job, raw: bytes) -> Letter:
    """The wire message. Only mail of users of this server is encoded again."""
    return Letter.of(job.sender, without_bcc(raw), mend=job.user_id is not None)


async def _hand_over(
    worker: Worker, lane: Lane, channel: smtp_client.Channel, what: tuple[Job, Letter]
) -> None:
    """Send a job over a connection, in batches, and record the results after each batch.

    Raises ServerFailed if the server ends the session, and LeaseLost.
    """
    job, letter = what

    async def before_dot(ids: Sequence[int]) -> None:
        if not await recipient_leases.still_held(worker.world, job, ids):
            raise LeaseLost
        worker.world.fault("dot")
        lane.sending = True

    said = dsn_requests.of_message(worker.world, job) if channel.offers("dsn") else None
    waiting = [(part, said) for part in batched(job.recipients, TOGETHER)]
    while waiting:
        recipients, asked = waiting.pop(0)
        results = await smtp_client.transmit(channel, letter, recipients, before_dot, asked)
        worker.world.fault("sent")
        await _settled(worker, lane, results, letter.head)
        lane.sending = False
        if again := [recipient for recipient in recipients if recipient.delivery_id not in results]:
            waiting.insert(0, (again, None))  # the server refuses the DSN parameters that it offers
        if waiting and not await channel.ready():
            raise NotReached(451, f"4.4.2 {channel.host.name} ended the session")


def batched(recipients: Sequence[To], most: int) -> list[Sequence[To]]:
    """Split recipients into batches of at most `batch_size`."""
    return [recipients[at : at + most] for at in range(0, len(recipients), most)]


def _all(job: Job, result: Result) -> dict[int, Result]:
    """The result for every recipient of a job, by delivery id."""
    return {recipient.delivery_id: result for recipient in job.recipients}


@asynccontextmanager
async def _leasing(worker: Worker) -> AsyncGenerator[None]:
    """Keep this process registered, and the leases of its lanes, until the end of the block."""

    def restore(turn: Turn) -> None:
        recipient_leases.take_back(turn, [job for lane in worker.lanes for job in lane.jobs])

    def list_work() -> list[int]:
        jobs = (job for lane in worker.lanes for job in lane.jobs)
        return [recipient.delivery_id for job in jobs for recipient in job.recipients]

    process = worker.world.process
    process.restore.append(restore)
    process.under_way.append(list_work)
    try:
        async with leases.registered(worker.world):
            yield
    finally:
        process.restore.remove(restore)
        process.under_way.remove(list_work)


async def _wind_up(worker: Worker, *, graceful: bool) -> None:
    """Stop all lanes and close the connections.

    If graceful, lanes that have sent the final dot wait for the reply, and unattempted recipients
    return to the queue.
    """
    worker.stopping = True
    lanes = list(worker.lanes)
    for lane in lanes:
        if lane.task and not (graceful and lane.sending):
            lane.task.cancel()
    await asyncio.gather(*(lane.task for lane in lanes if lane.task), return_exceptions=True)
    await worker.pool.close()
    left = [job for lane in lanes for job in lane.jobs]
    if left and graceful:
        await recipient_leases.hand_back(worker.world, left)
