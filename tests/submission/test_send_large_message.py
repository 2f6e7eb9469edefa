"""Test large messages: the size limit, and that refused attachments are not read."""

import tracemalloc
from typing import Any

import pytest

from tests.conftest import GraphQLClient
from tests.support.accounts.user_operations import execute_mutation
from tests.support.operations.message_sources import upload_bytes
from tests.support.operations.quarantine_operations import set_options
from tests.support.stores.counter_check import select_rows

MB = 1_000_000
SEND_INPUT = {"to": [{"address": "carol@example.net"}], "subject": "x", "text": "Look."}
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def send_message(client: GraphQLClient, **fields: Any) -> Any:
    answer = await execute_mutation(
        client, "messageSend", "submissions { id } messages { size }", **SEND_INPUT, **fields
    )
    errors = [(error["code"], error["path"][0], error.get("limit")) for error in answer["errors"]]
    return (answer["messages"] or [None])[0], errors


async def test_huge_attachments_are_refused_without_reading_them(ada: GraphQLClient) -> None:
    upload_ids = [await upload_bytes(ada, bytes(50 * MB)) for _ in range(2)]
    tracemalloc.start()
    try:
        message, errors = await send_message(
            ada, attachments=[{"upload": upload_id} for upload_id in upload_ids]
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (message, errors) == (None, [("LIMIT_REACHED", "attachments", 64 << 20)])
    assert peak < 10 * MB
    assert await select_rows(ada.environment, "SELECT count(*) FROM submissions") == [(0,)]
    assert await select_rows(ada.environment, "SELECT count(*) FROM messages") == [(0,)]


@pytest.mark.parametrize(("size", "fits"), [(700_000, True), (800_000, False)])
async def test_size_limit_applies_to_encoded_message(
    ada: GraphQLClient, size: int, fits: bool
) -> None:
    set_options(ada.environment, message_max_size=MB)
    attachments = [{"upload": await upload_bytes(ada, bytes(size // 2))} for _ in range(2)]
    message, errors = await send_message(ada, attachments=attachments)
    if fits:
        assert errors == []
        assert size < message["size"] <= MB
    else:  # base64 adds a third
        assert message is None
        ((code, _, limit),) = errors
        assert (code, limit) == ("LIMIT_REACHED", MB)
