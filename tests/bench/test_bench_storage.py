"""The figures of `python -m bench.storage`, on mail of which we know them."""

from bench.storage import measured
from tests.conftest import Client, raw_message, receive
from tests.support.mail.multipart_message import FILES, LARGE, raw


async def test_a_file_that_is_sent_twice_is_counted_once(ada: Client) -> None:
    one, two = raw(FILES[:1]), raw(FILES[:1], subject="Again")
    for message in (one, two):
        await receive(ada, message)
    found = await measured(ada.world.database)
    assert found.messages == 2
    assert found.raw == len(one) + len(two)
    assert (found.pieces, found.referred, found.files) == (3, 4, 1)
    assert found.apart - found.plain == len(LARGE) == found.in_files
    assert found.stored == found.inline + found.in_files
    assert found.rows > found.inline


async def test_small_mail_lies_in_rows_alone(ada: Client) -> None:
    before = await measured(ada.world.database)
    assert (before.messages, before.raw, before.pieces, before.stored) == (0, 0, 0, 0)
    await receive(ada, raw_message("Short"))
    found = await measured(ada.world.database)
    assert (found.messages, found.pieces, found.files) == (1, 1, 0)
    assert 0 < found.stored == found.inline
