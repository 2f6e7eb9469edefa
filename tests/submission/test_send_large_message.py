"""Many bytes in one message: refused by name before they are read, and sent up to the limit."""

import tracemalloc
from typing import Any

import pytest

from tests.conftest import Client
from tests.support.accounts.user_operations import run
from tests.support.operations.message_sources import put
from tests.support.operations.quarantine_operations import set_options
from tests.support.stores.counter_check import rows

MB = 1_000_000
TO = {"to": [{"address": "carol@example.net"}], "subject": "x", "text": "Look."}
pytestmark = pytest.mark.usefixtures("examined")


async def send(client: Client, **given: Any) -> Any:
    done = await run(client, "messageSend", "submission { id } message { size }", **TO, **given)
    errors = [(each["code"], each["path"][0], each.get("limit")) for each in done["errors"]]
    return done["message"], errors


async def test_a_hundred_megabytes_are_refused_before_they_are_read(ada: Client) -> None:
    keys = [await put(ada, bytes(50 * MB)) for _ in range(2)]
    tracemalloc.start()
    try:
        message, errors = await send(ada, attachments=[{"upload": key} for key in keys])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (message, errors) == (None, [("LIMIT_REACHED", "attachments", 64 << 20)])
    assert peak < 10 * MB
    assert await rows(ada.world, "SELECT count(*) FROM submissions") == [(0,)]
    assert await rows(ada.world, "SELECT count(*) FROM messages") == [(0,)]


@pytest.mark.parametrize(("size", "fits"), [(700_000, True), (800_000, False)])
async def test_what_counts_is_the_message_with_all_it_has(
    ada: Client, size: int, fits: bool
) -> None:
    set_options(ada.world, message_max=MB)
    halves = [{"upload": await put(ada, bytes(size // 2))} for _ in range(2)]
    message, errors = await send(ada, attachments=halves)
    if fits:
        assert errors == []
        assert size < message["size"] <= MB
    else:  # in base64 it is a third more
        assert message is None
        ((code, _, limit),) = errors
        assert (code, limit) == ("LIMIT_REACHED", MB)
