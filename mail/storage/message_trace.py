"""The delivery trace: the steps of messages, collected and written after the deliveries.

Steps wait in memory for a second and are written together, so that a delivery doesn't wait for
them. The steps of a second are lost if the process ends or the database fails, and steps that
exceed MAX_WAITING. Both are counted.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from sqlalchemy import insert

from mail.addresses.address_syntax import normal
from mail.storage.message_insert import Letter
from mail.text.storable_text import storable
from models.messages.message_trace import LogComponent, MessageStep
from models.observability import metrics
from models.runtime.environment import Turn, World
from models.store.columns import table_of
from models.store.database import Database
from models.store.prepared_statements import Prepared, Sent

log = logging.getLogger(__name__)

WAIT = 1.0  # seconds
MOST = 10_000  # steps that wait
LONGEST = 500  # characters of a Message-ID, and of a detail: an index takes no more on PostgreSQL

_STEP = Prepared(insert(MessageStep).inline())

LOST = metrics.counter("merganser_trace_lost", "Steps of messages that could not be written.")


@dataclass
class _Waiting:
    """The steps that wait to be written, with the timer and tasks that write them."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


@lru_cache(maxsize=4)
def _waiting(_database: Database) -> _Waiting:
    """The steps that wait to be written into this database."""
    return _Waiting()


@dataclass
class Way:
    """A recorder of the delivery trace of one received message."""

    queue_id: str = ""
    sender: str = ""  # of the envelope
    steps: list[dict[str, Any]] = field(default_factory=list)

    def say(  # noqa: PLR0913 - the columns of a step
        self,
        world: World,
        event: str,
        to: tuple[str, int | None],
        detail: str | None = None,
        *,
        component: LogComponent = LogComponent.MTA,
        stored_message_id: int | None = None,
    ) -> None:
        """Record a step for a recipient: its address, and the id of the domain that can read it."""
        address, domain_id = to
        self.steps.append(
            {
                "id": world.key(),
                "at": world.now(),
                "component": component,
                "event": event,
                "detail": detail,
                "address": address,
                "domain_id": domain_id,
                "submission_id": None,
                "stored_message_id": stored_message_id,
            }
        )

    def write(self, world: World, letter: Letter) -> None:
        """Write the recorded steps in the background."""
        _note(world, self._taken(letter))

    def put(self, turn: Turn, letter: Letter) -> None:
        """Write the recorded steps now, in a transaction that nothing else waits for."""
        rows = self._taken(letter)
        if turn.world.options.trace_for and rows:
            turn.connection.execute(insert(table_of(MessageStep)), rows)

    def _taken(self, letter: Letter) -> list[dict[str, Any]]:
        """Remove the recorded steps and return their rows."""
        known = {"queue_id": self.queue_id, "message_id": cut(letter.facts.message_id)}
        known |= _sender_columns(self.sender)
        steps, self.steps = self.steps, []
        return [
            {
                **step,
                **known,
                **_recipient_columns(step["address"]),
                "detail": cut(step["detail"]),
            }
            for step in steps
        ]


def new_id(world: World) -> str:
    """A new queue id for a received message."""
    return world.random(10).hex()


def cut(text: str | None) -> str | None:
    """The stored and searched form of a text, shortened to MAX_TEXT_LENGTH."""
    made: str | None = storable(text[:LONGEST]) if text else None
    return made


def search_key(address: str) -> str | None:
    """The form in which the addresses of steps are stored and searched."""
    return cut("@".join(normal(address)))


def _sender_columns(address: str) -> dict[str, str | None]:
    """The columns of an envelope sender; without values if it is empty."""
    key = search_key(address) if address else None
    return {
        "sender": cut(address),
        "sender_compared": key,
        "sender_domain": _domain(key),
    }


def _recipient_columns(address: str) -> dict[str, str | None]:
    """The columns of a recipient."""
    key = search_key(address)
    return {"address": cut(address), "compared": key, "recipient_domain": _domain(key)}


def _domain(key: str | None) -> str | None:
    """The domain of a normalized address; None if it has none."""
    return key.rpartition("@")[2] or None if key else None


def steps_of_submission(
    world: World, submission: Mapping[str, Any], recipients: Iterable[str]
) -> list[Sent]:
    """The inserts of one step for each recipient, for the transaction that queues a submission.

    `messageTrace` reads the submission itself and only finds it by these steps.
    """
    if not world.options.trace_for:
        return []
    shared = {
        "at": world.now(),
        "queue_id": submission["queue_id"],
        "message_id": submission["header_id"],
        "component": LogComponent.MTA,
        "event": "queued" if submission["copy_of"] is None else "copied",
        "submission_id": submission["id"],
        "stored_message_id": submission["message_id"],
        **_sender_columns(submission["envelope_from"]),
    }
    return [
        (_STEP, {"id": world.key(), **shared, **_recipient_columns(address)})
        for address in dict.fromkeys(recipients)
    ]


def _note(world: World, rows: Sequence[dict[str, Any]]) -> None:
    if not (world.options.trace_for and rows):
        return
    waiting = _waiting(world.database)
    room = max(0, MOST - len(waiting.rows))
    if len(rows) > room:
        LOST.add(by=len(rows) - room)
        log.warning("steps of messages are lost: too many wait", extra={"rows": len(rows) - room})
    waiting.rows += rows[:room]
    if waiting.timer is None:
        loop = asyncio.get_running_loop()
        waiting.timer = loop.call_later(WAIT, _begin, world, waiting)


def _begin(world: World, waiting: _Waiting) -> None:
    waiting.timer = None
    task = asyncio.create_task(_write(world, waiting))
    waiting.tasks.add(task)
    task.add_done_callback(waiting.tasks.discard)


async def _write(world: World, waiting: _Waiting) -> None:
    rows, waiting.rows = waiting.rows, []
    if not rows:
        return

    def unit(turn: Turn) -> None:
        turn.connection.execute(insert(table_of(MessageStep)), rows)

    try:
        await world.apply(unit)
    except (
        Exception
    ):  # outermost code of a task: the message is stored, and later steps must be written
        LOST.add(by=len(rows))
        log.exception("steps of messages are lost", extra={"rows": len(rows)})


async def settle(world: World) -> None:
    """Write all waiting steps: before they are read here, and before the database is closed."""
    waiting = _waiting(world.database)
    if waiting.timer is not None:
        waiting.timer.cancel()
        waiting.timer = None
    await asyncio.gather(_write(world, waiting), *waiting.tasks)
