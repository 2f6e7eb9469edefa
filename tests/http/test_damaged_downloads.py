"""Tests of downloads of damaged bytes: they return an error and not a truncated response."""

import tracemalloc
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update
from sqlmodel import col
from starlette.routing import Route

from graph.http import download_urls, rest_routes
from graph.types import global_ids
from mail.storage.blobs.damage_check import (
    require_intact_blob,
    require_intact_blobs_and_return_budget,
)
from mail.storage.blobs.errors import CorruptBlob
from models.files.blobs import Blob
from models.runtime.environment import Environment
from models.store.columns import select_columns
from resolvers.admin import tasks
from tests.conftest import GraphQLClient, deliver_to
from tests.support.accounts.user_exports import EXPORT_FIELDS, load_export
from tests.support.accounts.user_operations import execute_mutation
from tests.support.mail import multipart_message
from tests.support.operations.bulk_operations import inbox_selection, run_message_mutation
from tests.support.operations.file_operations import LARGE_CONTENT, share_file
from tests.support.operations.platform.legal_hold_operations import start_legal_hold
from tests.support.operations.quarantine_operations import quarantine_message
from tests.support.stores.blob_damage import BLOB_DAMAGES, damage_blob

# bytes of an attachment, more than one read
ATTACHMENT = multipart_message.pseudo_random_bytes(3 << 20)
ROUTES_WITHOUT_BLOBS = {  # routes that answer GET without stored bytes
    "/rest/blobs/{store}/{path:path}",  # objects as they are: tests/blobs
    "/rest/route",
    "/rest/users/{id}/updates",
    "/rest/uploads",
    "/rest/uploads/{id}",
    "/rest/mailboxes/{id}/messages",
}


def message_with_object(subject: str) -> bytes:
    """Return a message with an attachment that is stored as an object."""
    suffix = subject.encode()
    content = ATTACHMENT[: 2 << 20] + suffix
    body = multipart_message.base64_lines(content)
    return multipart_message.build_message(
        [multipart_message.base64_attachment("large.pdf", content, body)], subject=subject
    )


async def stored_objects(environment: Environment) -> list[Any]:
    query = select(*select_columns(Blob)).where(col(Blob.name).is_not(None)).order_by(col(Blob.id))
    return list(await environment.database.read(query))


@pytest.fixture
async def download_paths(
    ada: GraphQLClient, admin_client: GraphQLClient
) -> dict[str, tuple[GraphQLClient, str]]:
    """The user and path of a download, by route."""
    message_id = (await deliver_to(ada, message_with_object("Kept"))).message_id
    deleted_id = (await deliver_to(ada, message_with_object("Gone"))).message_id
    legal_hold = await start_legal_hold(admin_client, ada)
    export = (await execute_mutation(ada, "userExport", EXPORT_FIELDS))["userExport"]["id"]
    while await tasks.run_next_task(ada.environment):
        pass
    await run_message_mutation(ada, "messageDelete", select=inbox_selection("2"))
    quarantined_id = global_ids.decode_path_id(
        "QuarantineItem", await quarantine_message(ada, message_with_object("Held"))
    )
    upload = await ada.http.post(
        "/rest/files/large.bin",
        content=LARGE_CONTENT,
        headers={**ada.headers, "content-type": "text/plain"},
    )
    file_share = await share_file(ada, upload.json(), mode="READ_ONLY_LINK")
    message, quarantine = "/rest/messages/{id}", "/rest/quarantine/{id}"
    attachment = str(download_urls.attachment_id(quarantined_id, 0))
    paths_by_route = {
        f"{message}/message.eml": (ada, download_urls.message_source_path(message_id)),
        f"{message}/attachments/{{attachment}}": (
            ada,
            download_urls.attachment_download_path(message_id, 0),
        ),
        f"{message}/attachments.zip": (ada, download_urls.zip_path(message_id)),
        f"{message}/parts/{{section}}": (ada, download_urls.mime_part_path(message_id, "2")),
        "/rest/archive/{id}/message.eml": (ada, download_urls.deleted_message_path(deleted_id)),
        f"{quarantine}/message.eml": (ada, download_urls.quarantined_message_path(quarantined_id)),
        f"{quarantine}/attachments/{{attachment}}": (
            ada,
            download_urls.quarantined_message_path(quarantined_id, "attachments", attachment),
        ),
        f"{quarantine}/parts/{{section}}": (
            ada,
            download_urls.quarantined_message_path(quarantined_id, "parts", "2"),
        ),
        "/rest/files/{name}": (ada, f"/rest/files/{upload.json()['id']}"),
        "/share/{token}": (ada, httpx.URL(file_share["url"]).path),
        "/rest/users/{id}/export/{export}": (ada, (await load_export(ada, export))["url"]),
        "/rest/legal-holds/{id}/export.mbox": (
            admin_client,
            f"/rest/legal-holds/{legal_hold}/export.mbox",
        ),
    }
    served_routes = {
        route.path
        for route in rest_routes.rest_routes(ada.environment, _refuse_sign_in)
        if isinstance(route, Route)
    }
    assert set(paths_by_route) == served_routes - ROUTES_WITHOUT_BLOBS, (
        "each route that sends stored bytes is tried here"
    )
    return paths_by_route


async def _refuse_sign_in(*_: Any) -> Any:
    raise AssertionError


async def download(client: GraphQLClient, path: str, **headers: str) -> httpx.Response:
    return await client.http.get(path, headers={**client.headers, **headers})


@pytest.mark.parametrize("damage", ["flipped", "deleted", "truncated"])
async def test_every_download_of_damaged_bytes_returns_error(
    download_paths: dict[str, tuple[GraphQLClient, str]], environment: Environment, damage: str
) -> None:
    # bytes that were intact a moment ago are only looked up, not read again
    if damage != "flipped":
        for route, (client, path) in download_paths.items():
            assert (await download(client, path)).status_code == 200, route
    for row in await stored_objects(environment):
        damage_function = BLOB_DAMAGES.get(damage, lambda data: data[:-1] + bytes([data[-1] ^ 1]))
        await damage_blob(environment.object_store, row.name, damage_function)
    for route, (client, path) in download_paths.items():
        response = await download(client, path)
        (error,) = response.json()["errors"]
        assert (response.status_code, error["extensions"]["code"]) == (500, "DAMAGED"), route
        assert error["extensions"]["requestId"] == response.headers["x-request-id"]
        range_response = await download(client, path, range="bytes=1500000-1500009")
        if "zip" not in route and "mbox" not in route:
            assert range_response.status_code == 500, route


async def test_intact_part_of_damaged_message_is_sent(ada: GraphQLClient) -> None:
    message_id = (await deliver_to(ada, message_with_object("Text"))).message_id
    for row in await stored_objects(ada.environment):
        await damage_blob(ada.environment.object_store, row.name, BLOB_DAMAGES["emptied"])
    response = await download(ada, download_urls.mime_part_path(message_id, "1.1"))
    assert (response.status_code, response.text) == (200, multipart_message.PLAIN_TEXT)


async def test_large_blob_is_verified_once_and_in_chunks(
    environment: Environment, ada: GraphQLClient
) -> None:
    await deliver_to(
        ada,
        multipart_message.build_message(
            [
                multipart_message.base64_attachment(
                    "a", ATTACHMENT * 6, multipart_message.base64_lines(ATTACHMENT * 6)
                )
            ]
        ),
    )
    (row,) = [
        stored_object
        for stored_object in await stored_objects(environment)
        if stored_object.size == len(ATTACHMENT) * 6
    ]
    tracemalloc.start()
    try:
        await require_intact_blob(environment.object_store, row)
        peak_memory = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_memory < 8 << 20
    await damage_blob(environment.object_store, row.name, lambda data: bytes(len(data)))
    # the size is right, and the blob was verified a moment ago
    await require_intact_blob(environment.object_store, row)
    await damage_blob(environment.object_store, row.name, lambda data: data[:-1])
    with pytest.raises(CorruptBlob):
        await require_intact_blob(environment.object_store, row)


async def test_blobs_beyond_byte_budget_are_only_looked_up(
    environment: Environment, ada: GraphQLClient
) -> None:
    await deliver_to(ada, message_with_object("One"))
    rows = await stored_objects(environment)
    assert (
        await require_intact_blobs_and_return_budget(environment.object_store, rows, byte_budget=0)
        == 0
    )
    async with environment.write_session() as session:
        await session.exec(update(Blob).values(stored_size=1))
    with pytest.raises(CorruptBlob):
        await require_intact_blobs_and_return_budget(
            environment.object_store, await stored_objects(environment), byte_budget=0
        )
