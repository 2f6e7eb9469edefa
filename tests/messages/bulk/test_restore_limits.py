"""Test the limit of messages that are restored by ID at once."""

from graph.types import global_ids
from tests.conftest import GraphQLClient, deliver_to
from tests.support.accounts.user_operations import execute_mutation
from tests.support.operations.bulk_operations import run_message_mutation


async def test_at_most_1000_messages_are_restored_by_id(ada: GraphQLClient) -> None:
    key = (await deliver_to(ada)).message_id
    selection = {"ids": [global_ids.encode("Message", key)]}
    assert (await run_message_mutation(ada, "messageDelete", select=selection))["errors"] == []
    deleted_id = global_ids.encode("DeletedMessage", key)
    for count, paths, restored_count in ((1001, [["select", "ids"]], 0), (1000, [], 1000)):
        payload = await execute_mutation(
            ada,
            "deletedMessageRestore",
            "restored { message { id } }",
            select={"ids": [deleted_id] * count},
        )
        assert [error["path"] for error in payload["errors"]] == paths
        assert len(payload["restored"]) == restored_count
