"""Requests to all server processes: each one answers from its memory, mostly within a second.

The requester inserts one row, and each process that is alive inserts one answer. A wake-up tells
the processes of the request; each one also looks for new requests twice a second, since a wake-up
can be lost. A process without others asks only itself and writes no row.
"""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import orjson
from sqlalchemy import delete, insert, select
from sqlmodel import col

from models.cluster.nodes import ClusterNode
from models.cluster.own_node import address_text
from models.cluster.process_requests import ProcessAnswer, ProcessRequest
from models.events import wakeups
from models.events.wakeups import wait_for_any_event_or_timeout
from models.runtime.environment import DatabaseTransaction, Environment
from models.runtime.server_processes import ServerProcess
from models.store.columns import ColumnRow
from resolvers.auth.credential_cache import cache_of_database

log = logging.getLogger(__name__)

ANSWER_TIMEOUT = 1.0  # seconds that the requester waits, if the kind has no other timeout
POLL_SECONDS = 0.5  # between two looks for requests
FAST_POLL_SECONDS = 0.05  # after a request, since another one often follows
FAST_POLL_PERIOD = 2.0  # seconds after a request
ANSWER_POLL_SECONDS = 0.05  # between two looks for answers, if wake-ups are lost
MAX_REQUESTS_PER_POLL = 100
MAX_ARGUMENT_BYTES = 1 << 20
MAX_ANSWER_BYTES = 8 << 20

AnswerFunction = Callable[[Environment, Mapping[str, Any]], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class ProcessRequestKind:
    """A kind of request, with the function that answers it in each process.

    If `applies_late`, the request is kept for ten minutes: a process that was paused or
    disconnected answers it after the timeout, even if it was taken for dead. The requester waits
    for `timeout` seconds.
    """

    name: str
    answer: AnswerFunction
    applies_late: bool = False
    timeout: float = ANSWER_TIMEOUT


@dataclass(frozen=True, slots=True)
class AnswerOfProcess:
    """The answer of one process."""

    node: str  # `host:port` of the node of its server
    pid: int
    answer: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class AnswersOfProcesses:
    """The answers of all processes, and the nodes with a process that did not answer."""

    answers: Sequence[AnswerOfProcess]
    unresponsive_nodes: Sequence[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class AnsweringProcess:
    """A server process that answers requests, with the name of its node."""

    id: int
    pid: int
    server: str
    node: str  # host:port


async def ask_all_processes(
    environment: Environment, kind: ProcessRequestKind, arguments: Mapping[str, Any]
) -> AnswersOfProcesses:
    """Return the answers of this process and of all other server processes.

    Waits for the others at most for the timeout of the kind, after earlier requests of this process
    if too many wait. Raises ValueError if the arguments are larger than MAX_ARGUMENT_BYTES.
    """
    if len(orjson.dumps(arguments)) > MAX_ARGUMENT_BYTES:
        raise ValueError(f"The arguments of {kind.name} are too large.")
    others_by_id = await _load_other_answering_processes(environment)
    own_answer = asyncio.ensure_future(kind.answer(environment, arguments))
    try:
        others = AnswersOfProcesses([])
        if others_by_id:
            async with environment.process.request_slots:
                others = await _ask_other_processes(environment, kind, arguments, others_by_id)
    except BaseException:
        own_answer.cancel()
        raise
    own = AnswerOfProcess(environment.own_node.name, os.getpid(), await own_answer)
    return AnswersOfProcesses([own, *others.answers], others.unresponsive_nodes)


async def load_answering_processes(environment: Environment) -> Sequence[AnsweringProcess]:
    """Load the processes that answer requests, the oldest first, with the names of their nodes."""
    statement = (
        select(
            *map(col, (ServerProcess.id, ServerProcess.pid, ServerProcess.server)),
            col(ServerProcess.host).label("machine"),
            *map(col, (ClusterNode.host, ClusterNode.port)),
        )
        .outerjoin(ClusterNode, col(ClusterNode.server) == col(ServerProcess.server))
        .where(col(ServerProcess.answers_requests))
        .order_by(col(ServerProcess.id))
    )
    return [
        AnsweringProcess(
            row.id,
            row.pid,
            row.server,
            # a server that starts has no node yet
            address_text(row.host, row.port) if row.host else row.machine,
        )
        for row in await environment.database.read(statement)
    ]


async def _load_other_answering_processes(
    environment: Environment,
) -> dict[int, AnsweringProcess]:
    processes = await load_answering_processes(environment)
    return {process.id: process for process in processes if process.id != environment.process.id}


async def _ask_other_processes(
    environment: Environment,
    kind: ProcessRequestKind,
    arguments: Mapping[str, Any],
    processes_by_id: Mapping[int, AnsweringProcess],
) -> AnswersOfProcesses:
    deadline = time.monotonic() + kind.timeout
    request_id, now = environment.new_id(), environment.now()
    values = {
        "id": request_id,
        "kind": kind.name,
        "arguments": dict(arguments),
        "created_at": now,
        "reply_by": now + timedelta(seconds=kind.timeout),
    }

    def insert_request(transaction: DatabaseTransaction) -> None:
        transaction.connection.execute(insert(ProcessRequest), values)
        transaction.workers_to_wake.add(wakeups.PROCESS_REQUESTS)

    environment.process.own_request_ids.add(request_id)
    inserting = asyncio.create_task(environment.run_transaction(insert_request))
    answers: dict[int, Mapping[str, Any]] = {}
    unresponsive_nodes: list[str] = []
    try:
        with environment.wakeups.follow([wakeups.PROCESS_ANSWERS]) as answered:
            # a suspended process can have the lock of a SQLite database
            await asyncio.wait([inserting], timeout=kind.timeout)
            if inserting.done():
                await inserting
            while processes_by_id.keys() - answers.keys():
                seconds_left = deadline - time.monotonic()
                if seconds_left <= 0:
                    break
                pause = min(ANSWER_POLL_SECONDS, seconds_left)
                await wait_for_any_event_or_timeout([answered], pause)
                answered.clear()
                answers |= await _load_new_answers(environment, request_id, answers)
        if missing_ids := processes_by_id.keys() - answers.keys():
            # others have ended meanwhile
            missing_ids &= (await _load_other_answering_processes(environment)).keys()
            unresponsive_nodes = sorted({processes_by_id[key].node for key in missing_ids})
    finally:
        cache_of_database(environment.database).run_in_background(
            _delete_request_and_answers(
                environment, request_id, inserting, keeps_request=kind.applies_late
            )
        )
    return AnswersOfProcesses(
        [
            AnswerOfProcess(processes_by_id[key].node, processes_by_id[key].pid, answer)
            for key, answer in answers.items()
            if key in processes_by_id
        ],
        unresponsive_nodes,
    )


async def _load_new_answers(
    environment: Environment, request_id: int, known_process_ids: Collection[int]
) -> dict[int, Mapping[str, Any]]:
    statement = select(col(ProcessAnswer.process_id), col(ProcessAnswer.answer)).where(
        col(ProcessAnswer.request_id) == request_id,
        col(ProcessAnswer.process_id).not_in(list(known_process_ids)),
    )
    return {row.process_id: row.answer for row in await environment.database.read(statement)}


async def _delete_request_and_answers(
    environment: Environment,
    request_id: int,
    inserting: asyncio.Task[None],
    *,
    keeps_request: bool,
) -> None:
    """Delete the rows of a request, when its row is inserted.

    If the request is kept, housekeeping deletes it later.
    """
    await asyncio.wait([inserting])
    if inserting.exception() is not None:  # the requester raises it, or names all processes
        environment.process.own_request_ids.discard(request_id)
        return

    def delete_rows(transaction: DatabaseTransaction) -> None:
        if not keeps_request:
            transaction.connection.execute(
                delete(ProcessRequest).where(col(ProcessRequest.id) == request_id)
            )
        transaction.connection.execute(
            delete(ProcessAnswer).where(col(ProcessAnswer.request_id) == request_id)
        )

    await environment.run_transaction(delete_rows)
    if not keeps_request:
        environment.process.own_request_ids.discard(request_id)


async def answer_requests_until_cancelled(
    environment: Environment,
    kinds: Sequence[ProcessRequestKind],
    has_looked: asyncio.Event | None = None,
) -> None:
    """Answer the requests of other processes until cancelled.

    It answers requests from before its start too. `has_looked` is set after the first look for
    them: a process accepts sessions later, so they find nothing in it.
    """
    responder = _RequestResponder(environment, {kind.name: kind for kind in kinds})
    try:
        await responder.run_until_cancelled(has_looked or asyncio.Event())
    finally:
        await responder.cancel_answers()


class _RequestResponder:
    """Finds new requests, and runs the function that answers each of them in a task."""

    def __init__(
        self, environment: Environment, kinds_by_name: Mapping[str, ProcessRequestKind]
    ) -> None:
        self._environment = environment
        self._kinds_by_name = kinds_by_name
        self._known_ids = set[int]()
        self._tasks: set[asyncio.Task[None]] = set()
        self._fast_until = 0.0  # seconds of the monotonic clock
        self._is_failing = False

    async def run_until_cancelled(self, has_looked: asyncio.Event) -> None:
        """Look for new requests after each wake-up, and twice a second."""
        with self._environment.wakeups.follow([wakeups.PROCESS_REQUESTS]) as wakeup:
            while True:
                try:
                    await self._start_new_answers()
                    self._is_failing = False
                except Exception:  # in a database outage: the next look repeats it
                    if not self._is_failing:
                        log.exception("Could not read the requests of other processes")
                    self._is_failing = True
                has_looked.set()
                is_fast = time.monotonic() < self._fast_until
                pause = FAST_POLL_SECONDS if is_fast else POLL_SECONDS
                await wait_for_any_event_or_timeout([wakeup], pause)
                wakeup.clear()

    async def cancel_answers(self) -> None:
        """Cancel the answers that are being computed, and wait until they have ended."""
        if tasks := list(self._tasks):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _start_new_answers(self) -> None:
        rows = await self._environment.database.read(
            select(col(ProcessRequest.id)).order_by(col(ProcessRequest.id))
        )
        request_ids = {row.id for row in rows}
        own_ids = self._environment.process.own_request_ids
        self._known_ids |= request_ids & own_ids
        own_ids -= request_ids
        new_ids = request_ids - self._known_ids
        self._known_ids &= request_ids
        if not new_ids:
            return
        started_ids = sorted(new_ids)[:MAX_REQUESTS_PER_POLL]
        self._fast_until = time.monotonic() + FAST_POLL_PERIOD
        columns = ProcessRequest.id, ProcessRequest.kind, ProcessRequest.arguments
        statement = select(*map(col, columns)).where(col(ProcessRequest.id).in_(started_ids))
        for row in await self._environment.database.read(statement):
            task = asyncio.create_task(self._answer_and_log_errors(row))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._known_ids.update(started_ids)

    async def _answer_and_log_errors(self, request: ColumnRow) -> None:
        kind = self._kinds_by_name.get(request.kind)
        if kind is None:  # of another version
            log.warning("Unknown request of another process", extra={"kind": request.kind})
            return
        try:
            answer = await kind.answer(self._environment, request.arguments)
            size = len(orjson.dumps(answer))
            if size > MAX_ANSWER_BYTES:
                log.error("Answer too large", extra={"kind": request.kind, "bytes": size})
                return
            await self._store_answer_unless_deleted(request.id, answer)
        except Exception:  # the requester reports that this process did not answer
            log.exception("Could not answer another process", extra={"kind": request.kind})

    async def _store_answer_unless_deleted(
        self, request_id: int, answer: Mapping[str, Any]
    ) -> None:
        values = {
            "id": self._environment.new_id(),
            "request_id": request_id,
            "process_id": self._environment.process.id or 0,
            "answer": dict(answer),
            "created_at": self._environment.now(),
        }
        exists = select(col(ProcessRequest.id)).where(col(ProcessRequest.id) == request_id)

        def insert_answer(transaction: DatabaseTransaction) -> None:
            if transaction.connection.execute(exists).first() is not None:
                transaction.connection.execute(insert(ProcessAnswer), values)
                transaction.workers_to_wake.add(wakeups.PROCESS_ANSWERS)

        await self._environment.run_transaction(insert_answer)
