"""The figures of `python -m bench.storage`, on mail of which we know them."""

from bench.storage import measure_storage
from tests.conftest import Client, raw_message, receive
from tests.support.mail.multipart_message import FILES, LARGE, raw


async def test_a_file_that_is_sent_twice_is_counted_once(ada: Client) -> None:
    one, two = raw(FILES[:1]), raw(FILES[:1], subject="Again")
    for message in (one, two):
        await receive(ada, message)
    found = await measure_storage(ada.world.database)
    assert found.message_count == 2
    assert found.raw_bytes == len(one) + len(two)
    assert (found.blob_count, found.reference_count, found.object_count) == (3, 4, 1)
    assert found.unshared_bytes - found.plain_bytes == len(LARGE) == found.object_bytes
    assert found.stored_bytes == found.inline_bytes + found.object_bytes
    assert found.database_bytes > found.inline_bytes


async def test_small_mail_lies_in_rows_alone(ada: Client) -> None:
    before = await measure_storage(ada.world.database)
    assert (before.message_count, before.raw_bytes, before.blob_count, before.stored_bytes) == (
        0,
        0,
        0,
        0,
    )
    await receive(ada, raw_message("Short"))
    found = await measure_storage(ada.world.database)
    assert (found.message_count, found.blob_count, found.object_count) == (1, 1, 0)
    assert 0 < found.stored_bytes == found.inline_bytes
