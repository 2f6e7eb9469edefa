"""Tests of `python -m bench.storage` on mail with known sizes."""

from bench.storage import measure_storage
from tests.conftest import Client, raw_message, receive
from tests.support.mail.multipart_message import FILES, LARGE, raw


async def test_attachment_received_twice_is_counted_once(ada: Client) -> None:
    first_message, second_message = raw(FILES[:1]), raw(FILES[:1], subject="Again")
    for message in (first_message, second_message):
        await receive(ada, message)
    sizes = await measure_storage(ada.world.database)
    assert sizes.message_count == 2
    assert sizes.raw_bytes == len(first_message) + len(second_message)
    assert (sizes.blob_count, sizes.reference_count, sizes.object_count) == (3, 4, 1)
    assert sizes.unshared_bytes - sizes.plain_bytes == len(LARGE) == sizes.object_bytes
    assert sizes.stored_bytes == sizes.inline_bytes + sizes.object_bytes
    assert sizes.database_bytes > sizes.inline_bytes


async def test_small_message_is_stored_without_object(ada: Client) -> None:
    sizes_before = await measure_storage(ada.world.database)
    assert (
        sizes_before.message_count,
        sizes_before.raw_bytes,
        sizes_before.blob_count,
        sizes_before.stored_bytes,
    ) == (
        0,
        0,
        0,
        0,
    )
    await receive(ada, raw_message("Short"))
    sizes = await measure_storage(ada.world.database)
    assert (sizes.message_count, sizes.blob_count, sizes.object_count) == (1, 1, 0)
    assert 0 < sizes.stored_bytes == sizes.inline_bytes
