"""Shares of stored files: links, passwords, writable shares and their end."""

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest

from graph.types import global_ids
from mail.maintenance import housekeeping
from mail.storage.blobs.garbage_collector import collect_garbage
from models.runtime.environment import Environment
from resolvers.admin import tasks
from resolvers.files import shares
from tests.conftest import GraphQLClient, ManualClock
from tests.support.accounts.user_operations import PASSWORD, execute_mutation, user_global_id
from tests.support.case_loop import each_case
from tests.support.operations.file_operations import (
    SHARE_FIELDS,
    delete_by_ids,
    list_files,
    share_file,
    store_file,
)
from tests.support.stores.counter_check import select_rows

pytestmark = pytest.mark.usefixtures("verify_consistency")


async def test_share_serves_file_and_counts_accesses(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    share = await share_file(ada, await store_file(ada))
    clock.tick(days=50)
    download = await ada.http.get(share["url"])
    assert (download.status_code, download.text) == (200, "Ducks.")
    assert download.headers["content-disposition"] == 'attachment; filename="pond.txt"'
    assert download.headers["x-content-type-options"] == "nosniff"
    assert (await ada.http.head(share["url"])).status_code == 200
    partial = await ada.http.get(share["url"], headers={"Range": "bytes=2-"})
    assert (partial.status_code, partial.text) == (206, "cks.")
    conditional_headers = {"If-None-Match": download.headers["etag"]}
    assert (await ada.http.get(share["url"], headers=conditional_headers)).status_code == 304
    document = "query ($id: ID!) { node(id: $id) { ... on FileShare { accessCount expiresAt } } }"
    node = (await ada(document, id=share["id"]))["node"]
    assert node == {"accessCount": 1, "expiresAt": "2030-05-31T00:00:00Z"}
    clock.tick(days=100)
    assert (await ada.http.get(share["url"])).status_code == 404
    assert (await ada(document, id=share["id"]))["node"] is None
    assert (await housekeeping.run_housekeeping_round(ada.environment)).shares == 1


async def test_each_response_from_the_first_byte_counts_as_an_access(ada: GraphQLClient) -> None:
    share = await share_file(ada, await store_file(ada))
    document = "query ($id: ID!) { node(id: $id) { ... on FileShare { accessCount } } }"
    access_count = 0
    for headers, body, is_counted in (
        ({"Range": "bytes=0-1"}, "Du", True),
        ({"Range": "BYTES= 0-"}, "Ducks.", True),
        ({"Range": "bytes=-100"}, "Ducks.", True),
        ({"Range": "bytes=1-2,4-5"}, "Ducks.", True),
        ({"Range": "lines=1-2"}, "Ducks.", True),
        ({"Range": "bytes=2-", "If-Range": '"old"'}, "Ducks.", True),
        ({"Range": "bytes=-2"}, "s.", False),
        ({"Range": "bytes=2-"}, "cks.", False),
        ({"Range": "bytes=9-"}, None, False),
    ):
        response = await ada.http.get(share["url"], headers=headers)
        assert body in (None, response.text), headers
        access_count += is_counted
        assert (await ada(document, id=share["id"]))["node"] == {"accessCount": access_count}


async def test_invalid_share_input_is_refused(ada: GraphQLClient) -> None:
    file = await store_file(ada)
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"mode": "ATTACH"}, ["mode"]),
        ({"expiresAt": {"at": "2029-01-01T00:00:00Z"}}, ["expiresAt"]),
        ({"expiresAt": {"fromNow": "PT0S"}}, ["expiresAt"]),
        ({"expiresAt": {"fromNow": "P50000D"}}, ["expiresAt"]),
        ({"password": "short"}, ["password"]),
        ({"file": {"id": global_ids.encode("File", 7)}}, ["file"]),
    ]
    for case in each_case(cases):
        with case as (fields, path):
            payload = await execute_mutation(
                ada, "fileShareCreate", SHARE_FIELDS, **{"file": {"id": file["id"]}, **fields}
            )
            assert [error["path"] for error in payload["errors"]] == [path]
            assert await select_rows(ada.environment, "SELECT id FROM file_shares") == []


async def test_only_writable_share_accepts_put(ada: GraphQLClient) -> None:
    cases: list[str] = ["LINK", "READ_ONLY_LINK", "WRITABLE_LINK"]
    for case in each_case(cases):
        with case as mode:
            file = await store_file(ada)
            share = await share_file(ada, file, mode=mode)
            writable_share = await share_file(ada, file, mode="WRITABLE_LINK")
            response = await ada.http.put(share["url"], content=b"Geese.")
            assert response.status_code == (204 if mode == "WRITABLE_LINK" else 403)
            assert (await ada.http.put(writable_share["url"], content=b"Swans!")).status_code == 204
            download = await ada.http.get(share["url"])
            assert download.text == ("Ducks." if mode == "READ_ONLY_LINK" else "Swans!")
            assert (await ada.http.get(writable_share["url"])).text == "Swans!"
            await collect_garbage(ada.environment, ada.environment.object_store)
            assert (await ada.http.get(share["url"])).text == download.text


async def test_put_to_share_checks_if_match_and_size(
    ada: GraphQLClient, environment: Environment
) -> None:
    share = await share_file(ada, await store_file(ada), mode="WRITABLE_LINK")
    etag = (await ada.http.get(share["url"])).headers["etag"]
    conditional_headers = {"If-Match": etag}
    response = await ada.http.put(share["url"], content=b"Geese.", headers=conditional_headers)
    assert response.status_code == 204
    assert response.headers["etag"] == f'"{hashlib.sha256(b"Geese.").hexdigest()}"'
    stale_response = await ada.http.put(
        share["url"], content=b"Swans.", headers=conditional_headers
    )
    assert stale_response.status_code == 412
    too_large_response = await ada.http.put(
        share["url"],
        content=b"x",
        headers={"Content-Length": str(environment.options.upload_max_size + 1)},
    )
    assert too_large_response.status_code == 413
    assert (await ada.http.get(share["url"])).text == "Geese."
    assert (await list_files(ada))["totalCount"] == 1


async def test_share_password_is_required_and_throttled(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    share = await share_file(ada, await store_file(ada), password=PASSWORD)
    assert share["hasPassword"] is True
    ((stored_password,),) = await select_rows(ada.environment, "SELECT password FROM file_shares")
    assert stored_password.startswith("$argon2id$")
    unauthenticated = await ada.http.get(share["url"])
    assert (unauthenticated.status_code, unauthenticated.headers["www-authenticate"][:5]) == (
        401,
        "Basic",
    )
    assert "Ducks" not in unauthenticated.text
    credentials = ("anybody", PASSWORD)
    assert (await ada.http.get(share["url"], auth=credentials)).text == "Ducks."
    for _ in range(ada.environment.options.sign_in_max_failures):
        wrong_password = await ada.http.get(share["url"], auth=("x", "wrong"))
        assert wrong_password.status_code == 401
    throttled = await ada.http.get(share["url"], auth=credentials)
    assert (throttled.status_code, "retry-after" in throttled.headers) == (429, True)
    clock.tick(minutes=3)
    assert (await ada.http.get(share["url"], auth=credentials)).status_code == 200
    invalid_headers = {"Authorization": "Basic no base64"}
    assert (await ada.http.get(share["url"], headers=invalid_headers)).status_code == 401


async def test_share_token_is_signed_and_not_stored(
    ada: GraphQLClient, environment: Environment
) -> None:
    share = await share_file(ada, await store_file(ada))
    valid_token = share["url"].partition("/share/")[2]
    share_id = global_ids.decode("FileShare", share["id"])
    assert valid_token == shares.create_share_token(environment, share_id)
    foreign_token = shares.create_share_token(
        replace(environment, signing_secret=b"x" * 32), share_id
    )
    for token in (
        foreign_token,
        valid_token[:-1],
        valid_token + "=",
        valid_token.swapcase(),
        "x",
        "%00",
        "ä",
        "A" * 5000,
    ):
        assert (await ada.http.get(f"/share/{token}")).status_code == 404
    stored_rows = json.dumps(
        [
            [str(column) for column in row]
            for row in await select_rows(environment, "SELECT * FROM file_shares")
        ]
    )
    assert valid_token not in stored_rows


@pytest.mark.parametrize("deleted", ["share", "file", "user", "inactive"])
async def test_share_ends_with_its_file_or_user(
    ada: GraphQLClient, root: GraphQLClient, deleted: str
) -> None:
    file = await store_file(ada)
    share = await share_file(ada, file)
    selection: dict[str, Any] = {"users": {"ids": [user_global_id(ada)]}}
    match deleted:
        case "share":
            payload = await delete_by_ids(ada, "fileShareDelete", share["id"])
        case "file":
            payload = await delete_by_ids(ada, "fileDelete", file["id"])
        case "user":
            payload = await execute_mutation(root, "userDelete", "deletedIds", **selection)
        case _:
            payload = await execute_mutation(root, "userUpdate", **selection, set={"active": False})
    assert payload["errors"] == []
    assert (await ada.http.get(share["url"])).status_code == 404
    if deleted == "user":
        assert await tasks.run_next_task(ada.environment)
        assert await select_rows(ada.environment, "SELECT id FROM files") == []
        assert await select_rows(ada.environment, "SELECT id FROM file_shares") == []
