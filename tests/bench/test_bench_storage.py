"""Tests of `python -m bench.storage` on mail with known sizes."""

from bench.storage import measure_storage
from tests.conftest import GraphQLClient, deliver_to, raw_message
from tests.support.mail.multipart_message import ATTACHMENTS, LARGE_CONTENT, build_message


async def test_attachment_received_twice_is_counted_once(ada: GraphQLClient) -> None:
    first_message = build_message(ATTACHMENTS[:1])
    second_message = build_message(ATTACHMENTS[:1], subject="Again")
    for message in (first_message, second_message):
        await deliver_to(ada, message)
    sizes = await measure_storage(ada.environment.database)
    assert sizes.message_count == 2
    assert sizes.raw_bytes == len(first_message) + len(second_message)
    assert (sizes.blob_count, sizes.reference_count, sizes.object_count) == (3, 4, 1)
    assert sizes.unshared_bytes - sizes.plain_bytes == len(LARGE_CONTENT) == sizes.object_bytes
    assert sizes.stored_bytes == sizes.inline_bytes + sizes.object_bytes
    assert sizes.database_bytes > sizes.inline_bytes


async def test_small_message_is_stored_without_object(ada: GraphQLClient) -> None:
    sizes_before = await measure_storage(ada.environment.database)
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
    await deliver_to(ada, raw_message("Short"))
    sizes = await measure_storage(ada.environment.database)
    assert (sizes.message_count, sizes.blob_count, sizes.object_count) == (1, 1, 0)
    assert 0 < sizes.stored_bytes == sizes.inline_bytes
