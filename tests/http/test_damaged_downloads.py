"""Downloads of damaged bytes: an error in place of an answer that is cut off."""

import tracemalloc
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update
from sqlmodel import col
from starlette.routing import Route

from graph.http import download_urls, rest_routes
from graph.types import global_ids
from mail.storage.blobs.damage_check import check_piece, check_pieces
from mail.storage.blobs.errors import Corrupt
from models.files.blobs import Blob
from models.runtime.environment import World
from models.store.columns import picked
from resolvers.admin import tasks
from tests.admin.test_audit import begun
from tests.conftest import Client, receive
from tests.files.test_stored_files import BIG, share
from tests.mail.storage.blobs.test_damaged_blobs import DAMAGES, spoil
from tests.support.accounts.account_exports import EXPORT, node
from tests.support.accounts.user_operations import run
from tests.support.mail import multipart_message
from tests.support.operations.bulk_operations import call, inbox
from tests.support.operations.quarantine_operations import hold

LARGE = multipart_message.noise(3 << 20)  # bytes of an attachment: more than is read at once
UNREAD = {  # routes that answer GET without stored bytes
    "/rest/users/{id}/updates",
    "/rest/uploads",
    "/rest/uploads/{id}",
    "/rest/mailboxes/{id}/messages",
}


def letter(subject: str) -> bytes:
    """A message with an attachment that is an object of its own."""
    seed = subject.encode()
    content = LARGE[: 2 << 20] + seed
    body = multipart_message.wrapped(content)
    return multipart_message.raw(
        [multipart_message.base64_file("large.pdf", content, body)], subject=subject
    )


async def objects(world: World) -> list[Any]:
    asked = select(*picked(Blob)).where(col(Blob.name).is_not(None)).order_by(col(Blob.id))
    return list(await world.database.read(asked))


@pytest.fixture
async def paths(ada: Client, over: Client) -> dict[str, tuple[Client, str]]:
    """For each route, who downloads what there."""
    kept = (await receive(ada, letter("Kept"))).message_id
    gone = (await receive(ada, letter("Gone"))).message_id
    audit = await begun(over, ada)
    export = (await run(ada, "accountExport", EXPORT))["export"]["id"]
    while await tasks.work(ada.world):
        pass
    await call(ada, "messageDelete", select=inbox("2"))
    held = global_ids.named("QuarantineItem", await hold(ada, letter("Held")))
    upload = await ada.http.post(
        "/rest/files/large.bin", content=BIG, headers={**ada.headers, "content-type": "text/plain"}
    )
    shared = await share(ada, upload.json(), mode="SHARE_RO")
    message, quarantine = "/rest/messages/{id}", "/rest/quarantine/{id}"
    attachment = str(download_urls.attachment_id(held, 0))
    found = {
        f"{message}/message.eml": (ada, download_urls.source_path(kept)),
        f"{message}/attachments/{{attachment}}": (ada, download_urls.attachment_path(kept, 0)),
        f"{message}/attachments.zip": (ada, download_urls.zip_path(kept)),
        f"{message}/parts/{{section}}": (ada, download_urls.part_path(kept, "2")),
        "/rest/archive/{id}/message.eml": (ada, download_urls.archived_path(gone)),
        f"{quarantine}/message.eml": (ada, download_urls.held_path(held)),
        f"{quarantine}/attachments/{{attachment}}": (
            ada,
            download_urls.held_path(held, "attachments", attachment),
        ),
        f"{quarantine}/parts/{{section}}": (ada, download_urls.held_path(held, "parts", "2")),
        "/rest/files/{name}": (ada, f"/rest/files/{upload.json()['id']}"),
        "/share/{token}": (ada, httpx.URL(shared["url"]).path),
        "/rest/users/{id}/export/{export}": (ada, (await node(ada, export))["url"]),
        "/rest/audits/{id}/export.mbox": (over, f"/rest/audits/{audit}/export.mbox"),
    }
    served = {one.path for one in rest_routes.routes(ada.world, _nobody) if isinstance(one, Route)}
    assert set(found) == served - UNREAD, "each route that sends stored bytes is tried here"
    return found


async def _nobody(*_: Any) -> Any:
    raise AssertionError


async def get(client: Client, path: str, **headers: str) -> httpx.Response:
    return await client.http.get(path, headers={**client.headers, **headers})


@pytest.mark.parametrize("damage", ["flipped", "deleted", "truncated"])
async def test_each_download_of_damaged_bytes_is_an_error(
    paths: dict[str, tuple[Client, str]], world: World, damage: str
) -> None:
    if damage != "flipped":  # bytes that were sound just now are not read again, but looked for
        for route, (client, path) in paths.items():
            assert (await get(client, path)).status_code == 200, route
    for row in await objects(world):
        harm = DAMAGES.get(damage, lambda data: data[:-1] + bytes([data[-1] ^ 1]))
        await spoil(world.blobs, row.name, harm)
    for route, (client, path) in paths.items():
        answer = await get(client, path)
        (error,) = answer.json()["errors"]
        assert (answer.status_code, error["extensions"]["code"]) == (500, "DAMAGED"), route
        assert error["extensions"]["requestId"] == answer.headers["x-request-id"]
        ranged = await get(client, path, range="bytes=1500000-1500009")
        if "zip" not in route and "mbox" not in route:
            assert ranged.status_code == 500, route


async def test_a_part_that_is_intact_is_sent(ada: Client) -> None:
    key = (await receive(ada, letter("Text"))).message_id
    for row in await objects(ada.world):
        await spoil(ada.world.blobs, row.name, DAMAGES["emptied"])
    answer = await get(ada, download_urls.part_path(key, "1.1"))
    assert (answer.status_code, answer.text) == (200, multipart_message.TEXT)


async def test_a_large_piece_is_read_once_and_in_steps(world: World, ada: Client) -> None:
    await receive(
        ada,
        multipart_message.raw(
            [multipart_message.base64_file("a", LARGE * 6, multipart_message.wrapped(LARGE * 6))]
        ),
    )
    (row,) = [one for one in await objects(world) if one.size == len(LARGE) * 6]
    tracemalloc.start()
    try:
        await check_piece(world.blobs, row)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 8 << 20
    await spoil(world.blobs, row.name, lambda data: bytes(len(data)))
    await check_piece(world.blobs, row)  # its size is right, and it was read just now
    await spoil(world.blobs, row.name, lambda data: data[:-1])
    with pytest.raises(Corrupt):
        await check_piece(world.blobs, row)


async def test_pieces_beyond_the_budget_are_looked_for(world: World, ada: Client) -> None:
    await receive(ada, letter("One"))
    rows = await objects(world)
    assert await check_pieces(world.blobs, rows, budget=0) == 0
    async with world.write() as session:
        await session.exec(update(Blob).values(stored_size=1))
    with pytest.raises(Corrupt):
        await check_pieces(world.blobs, await objects(world), budget=0)
