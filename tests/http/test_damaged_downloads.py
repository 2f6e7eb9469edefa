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
from mail.storage.blobs.damage_check import check_blob, check_blobs
from mail.storage.blobs.errors import CorruptBlob
from models.files.blobs import Blob
from models.runtime.environment import Environment
from models.store.columns import select_columns
from resolvers.admin import tasks
from tests.conftest import Client, receive
from tests.support.accounts.account_exports import EXPORT, node
from tests.support.accounts.user_operations import run
from tests.support.mail import multipart_message
from tests.support.operations.audit_operations import start_audit
from tests.support.operations.bulk_operations import call, inbox
from tests.support.operations.file_operations import LARGE_CONTENT, share_file
from tests.support.operations.quarantine_operations import hold
from tests.support.stores.blob_damage import BLOB_DAMAGES, damage_blob

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


async def objects(world: Environment) -> list[Any]:
    asked = select(*select_columns(Blob)).where(col(Blob.name).is_not(None)).order_by(col(Blob.id))
    return list(await world.database.read(asked))


@pytest.fixture
async def paths(ada: Client, over: Client) -> dict[str, tuple[Client, str]]:
    """For each route, who downloads what there."""
    kept = (await receive(ada, letter("Kept"))).message_id
    gone = (await receive(ada, letter("Gone"))).message_id
    audit = await start_audit(over, ada)
    export = (await run(ada, "accountExport", EXPORT))["export"]["id"]
    while await tasks.run_next_task(ada.world):
        pass
    await call(ada, "messageDelete", select=inbox("2"))
    held = global_ids.decode_path_id("QuarantineItem", await hold(ada, letter("Held")))
    upload = await ada.http.post(
        "/rest/files/large.bin",
        content=LARGE_CONTENT,
        headers={**ada.headers, "content-type": "text/plain"},
    )
    shared = await share_file(ada, upload.json(), mode="SHARE_RO")
    message, quarantine = "/rest/messages/{id}", "/rest/quarantine/{id}"
    attachment = str(download_urls.attachment_id(held, 0))
    found = {
        f"{message}/message.eml": (ada, download_urls.message_source_path(kept)),
        f"{message}/attachments/{{attachment}}": (
            ada,
            download_urls.attachment_download_path(kept, 0),
        ),
        f"{message}/attachments.zip": (ada, download_urls.zip_path(kept)),
        f"{message}/parts/{{section}}": (ada, download_urls.mime_part_path(kept, "2")),
        "/rest/archive/{id}/message.eml": (ada, download_urls.deleted_message_path(gone)),
        f"{quarantine}/message.eml": (ada, download_urls.quarantined_message_path(held)),
        f"{quarantine}/attachments/{{attachment}}": (
            ada,
            download_urls.quarantined_message_path(held, "attachments", attachment),
        ),
        f"{quarantine}/parts/{{section}}": (
            ada,
            download_urls.quarantined_message_path(held, "parts", "2"),
        ),
        "/rest/files/{name}": (ada, f"/rest/files/{upload.json()['id']}"),
        "/share/{token}": (ada, httpx.URL(shared["url"]).path),
        "/rest/users/{id}/export/{export}": (ada, (await node(ada, export))["url"]),
        "/rest/audits/{id}/export.mbox": (over, f"/rest/audits/{audit}/export.mbox"),
    }
    served = {
        one.path for one in rest_routes.rest_routes(ada.world, _nobody) if isinstance(one, Route)
    }
    assert set(found) == served - UNREAD, "each route that sends stored bytes is tried here"
    return found


async def _nobody(*_: Any) -> Any:
    raise AssertionError


async def get(client: Client, path: str, **headers: str) -> httpx.Response:
    return await client.http.get(path, headers={**client.headers, **headers})


@pytest.mark.parametrize("damage", ["flipped", "deleted", "truncated"])
async def test_each_download_of_damaged_bytes_is_an_error(
    paths: dict[str, tuple[Client, str]], world: Environment, damage: str
) -> None:
    if damage != "flipped":  # bytes that were sound just now are not read again, but looked for
        for route, (client, path) in paths.items():
            assert (await get(client, path)).status_code == 200, route
    for row in await objects(world):
        harm = BLOB_DAMAGES.get(damage, lambda data: data[:-1] + bytes([data[-1] ^ 1]))
        await damage_blob(world.object_store, row.name, harm)
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
        await damage_blob(ada.world.object_store, row.name, BLOB_DAMAGES["emptied"])
    answer = await get(ada, download_urls.mime_part_path(key, "1.1"))
    assert (answer.status_code, answer.text) == (200, multipart_message.TEXT)


async def test_a_large_piece_is_read_once_and_in_steps(world: Environment, ada: Client) -> None:
    await receive(
        ada,
        multipart_message.raw(
            [multipart_message.base64_file("a", LARGE * 6, multipart_message.wrapped(LARGE * 6))]
        ),
    )
    (row,) = [one for one in await objects(world) if one.size == len(LARGE) * 6]
    tracemalloc.start()
    try:
        await check_blob(world.object_store, row)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 8 << 20
    await damage_blob(world.object_store, row.name, lambda data: bytes(len(data)))
    await check_blob(world.object_store, row)  # its size is right, and it was read just now
    await damage_blob(world.object_store, row.name, lambda data: data[:-1])
    with pytest.raises(CorruptBlob):
        await check_blob(world.object_store, row)


async def test_pieces_beyond_the_budget_are_looked_for(world: Environment, ada: Client) -> None:
    await receive(ada, letter("One"))
    rows = await objects(world)
    assert await check_blobs(world.object_store, rows, byte_budget=0) == 0
    async with world.write_session() as session:
        await session.exec(update(Blob).values(stored_size=1))
    with pytest.raises(CorruptBlob):
        await check_blobs(world.object_store, await objects(world), byte_budget=0)
