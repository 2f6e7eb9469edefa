"""Sample calls of mutations of the queue."""

from typing import Any

from sqlalchemy import update
from sqlmodel import col

from models.queue.tables import DeliveryState, QueueEntry
from tests.conftest import GraphQLClient
from tests.support.sample_mutations import mailbox_and_message_mutations
from tests.support.sample_mutations.mutation_call import MutationCall, register_call

SEND_AT = "2031-01-01T00:00:00Z"


async def send_later(ada: GraphQLClient, root: GraphQLClient) -> dict[str, Any]:
    """Create a submission with a future send time; return its id and queue id."""
    send = await mailbox_and_message_mutations.message_send(ada, root)
    send_at_time = MutationCall(
        "messageSend", {**send.input, "sendAt": SEND_AT}, "submissions { id queueId }"
    )
    submission: dict[str, Any] = (await send_at_time(ada))["submissions"][0]
    return submission


@register_call
async def queue_delete(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    input_fields = {"queueEntries": [{"queueId": (await send_later(ada, root))["queueId"]}]}
    return MutationCall("queueDelete", input_fields, "deletedCount task { kind }")


@register_call
async def queue_flush(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    input_fields = {"queueEntries": [{"queueId": (await send_later(ada, root))["queueId"]}]}
    async with ada.environment.write_session(ada.user.id) as session:
        statement = update(QueueEntry).where(col(QueueEntry.user_id) == ada.user.id)
        values = {"state": DeliveryState.DEFERRED, "attempts": 1}
        await (await session.connection()).execute(statement.values(**values))
    return MutationCall("queueFlush", input_fields, "scheduledCount task { kind }", by_root=True)


@register_call
async def queue_hold(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    input_fields = {"queueEntries": [{"queueId": (await send_later(ada, root))["queueId"]}]}
    return MutationCall("queueHold", input_fields, "queueEntries { queueName }", by_root=True)


@register_call
async def queue_release(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    hold = await queue_hold(ada, root)
    await hold(root)
    return MutationCall("queueRelease", hold.input, "queueEntries { queueName }", by_root=True)


@register_call
async def submission_reschedule(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    input_fields = {
        "submissions": [{"id": (await send_later(ada, root))["id"]}],
        "sendAt": "2032-01-01T00:00:00Z",
    }
    return MutationCall("submissionReschedule", input_fields, "submissions { state sendAt }")
