"""Calls about what waits to go out."""

from typing import Any

from sqlalchemy import update
from sqlmodel import col

from models.queue.tables import DeliveryState, QueueEntry
from tests.conftest import Client
from tests.support.sample_mutations import mailbox_and_message_mutations
from tests.support.sample_mutations.mutation_call import Call, call

LATER = "2031-01-01T00:00:00Z"


async def waiting(ada: Client, root: Client) -> dict[str, Any]:
    """A submission that is not sent before tests end: its id, and its name in the queue."""
    send = await mailbox_and_message_mutations.message_send(ada, root)
    later = Call("messageSend", {**send.input, "sendTime": LATER}, "submission { id queueId }")
    found: dict[str, Any] = (await later(ada))["submission"]
    return found


@call
async def queue_delete(ada: Client, root: Client) -> Call:
    given = {"queueIds": [(await waiting(ada, root))["queueId"]]}
    return Call("queueDelete", given, "deletedCount task { kind }")


@call
async def queue_flush(ada: Client, root: Client) -> Call:
    given = {"queueIds": [(await waiting(ada, root))["queueId"]]}
    async with ada.world.write_session(ada.user.id) as session:
        tried = update(QueueEntry).where(col(QueueEntry.user_id) == ada.user.id)
        values = {"state": DeliveryState.DEFERRED, "attempts": 1}
        await (await session.connection()).execute(tried.values(**values))
    return Call("queueFlush", given, "scheduledCount task { kind }", by_root=True)


@call
async def queue_hold(ada: Client, root: Client) -> Call:
    given = {"queueIds": [(await waiting(ada, root))["queueId"]], "hold": True}
    return Call("queueHold", given, "entries { queueName }", by_root=True)


@call
async def submission_reschedule(ada: Client, root: Client) -> Call:
    given = {"ids": [(await waiting(ada, root))["id"]], "sendTime": "2032-01-01T00:00:00Z"}
    return Call("submissionReschedule", given, "submissions { state sendTime }")
