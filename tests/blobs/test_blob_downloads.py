"""GET /rest/blobs: signed URLs, ranges, validators, headers, rights and logs."""

import hashlib
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from models.auth.security_log import SecurityEventAction
from models.users.roles import Role, Scope
from tests.conftest import GraphQLClient, ManualClock, make_api_key, make_client
from tests.support.accounts.security_events import load_security_events
from tests.support.case_loop import each_case
from tests.support.operations.platform.blob_operations import (
    deliver_text_attachment,
    large_body,
    list_blobs,
    load_audit_entries,
    put_blob,
)

pytestmark = pytest.mark.usefixtures("verify_consistency")


@pytest.fixture
async def boss(root: GraphQLClient) -> GraphQLClient:
    """A client of a user with the role ROOT."""
    return await make_client(root.environment, root.http, "boss", role=Role.ROOT)


async def url_of_blob(client: GraphQLClient, path: str) -> str:
    """The signed URL of an object. Nothing is read."""
    document = "query ($path: String!) { blob(path: $path) { url } }"
    return str((await client(document, path=path))["blob"]["url"])


async def test_signed_url_serves_the_decompressed_content(
    ada: GraphQLClient, boss: GraphQLClient
) -> None:
    content = large_body(7).encode()
    await deliver_text_attachment(ada, content.decode())
    (node,) = (await list_blobs(boss))["nodes"]
    url = await url_of_blob(boss, node["path"])
    assert urlsplit(url).path == f"/rest/blobs/hot/{node['path']}"
    assert await load_audit_entries(boss, "Blob.url") == []
    response = await boss.http.get(url)
    assert (response.status_code, response.content) == (200, content)
    assert hashlib.sha256(response.content).hexdigest() == node["sha256"]
    headers = response.headers
    assert headers["content-type"] == "application/octet-stream"
    assert headers["content-disposition"].startswith("attachment; filename=")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert headers["accept-ranges"] == "bytes"
    (entry,) = await load_audit_entries(boss, "Blob.url")
    assert (entry["actor"], entry["after"]["path"]) == ("boss", node["path"])
    events = [
        (event.user_id, event.by, event.count)
        for event in await load_security_events(ada.environment)
        if event.action is SecurityEventAction.MESSAGES_READ
    ]
    assert events == [(ada.user.id, "boss", 1)]


async def test_ranges_and_validators(root: GraphQLClient, clock: ManualClock) -> None:
    content = "0123456789" * 1000
    await put_blob(root, "admin/file", content)
    url = await url_of_blob(root, "admin/file")
    response = await root.http.get(url, headers={"Range": "bytes=5-14"})
    assert (response.status_code, response.text) == (206, content[5:15])
    assert response.headers["content-range"] == f"bytes 5-14/{len(content)}"
    response = await root.http.get(url, headers={"Range": "bytes=-3"})
    assert response.text == content[-3:]
    response = await root.http.get(url, headers={"Range": f"bytes={len(content)}-"})
    assert response.status_code == 416
    assert len(await load_audit_entries(root, "Blob.url")) == 3
    etag = (await root.http.head(url)).headers["etag"]
    response = await root.http.get(url, headers={"If-None-Match": etag})
    assert (response.status_code, response.content) == (304, b"")
    assert len(await load_audit_entries(root, "Blob.url")) == 3
    await put_blob(root, "admin/file", content[::-1])
    response = await root.http.get(url, headers={"If-None-Match": etag})
    assert (response.status_code, response.text) == (200, content[::-1])
    response = await root.http.get(url, headers={"If-Match": etag})
    assert response.status_code == 412
    clock.tick(minutes=21)
    assert (await root.http.get(url)).status_code == 401


async def test_only_root_downloads(
    ada: GraphQLClient, admin_client: GraphQLClient, root: GraphQLClient
) -> None:
    await put_blob(root, "admin/file")
    path = "/rest/blobs/hot/admin/file"
    for client in (ada, admin_client):
        assert (await client.http.get(path, headers=client.headers)).status_code == 403
    assert (await root.http.get(path)).status_code == 401
    assert (await root.http.get(path, headers=root.headers)).text == "hello"
    secret = await make_api_key(root.environment, "sender", role=Role.ROOT, scopes=[Scope.SUBMIT])
    response = await root.http.get(path, headers={"Authorization": f"Bearer {secret}"})
    assert response.status_code == 403
    url = await url_of_blob(root, "admin/file")
    for forged in (
        url.replace("admin/file", "admin/other"), url.replace("/hot/", "/cold/"), url[:-1],
        url.replace("sig=", "sig=x"),
    ):  # fmt: skip
        assert (await root.http.get(forged)).status_code == 401
    assert len(await load_audit_entries(root, "Blob.url")) == 1


async def test_url_ends_with_the_role_of_its_signer(
    root: GraphQLClient, boss: GraphQLClient
) -> None:
    await put_blob(root, "admin/file")
    url = await url_of_blob(boss, "admin/file")
    assert (await boss.http.get(url)).status_code == 200
    key: dict[str, Any] = {"apiKeys": [{"id": await _own_key_id(boss)}]}
    await root(
        "mutation ($input: ApiKeyDeleteInput!) { apiKeyDelete(input: $input) { errors { code } } }",
        input=key,
    )
    assert (await boss.http.get(url)).status_code == 401


async def _own_key_id(client: GraphQLClient) -> str:
    nodes = (await client("{ apiKeys { nodes { id name } } }"))["apiKeys"]["nodes"]
    return str(next(node["id"] for node in nodes if node["name"] == client.user.username))


async def test_wrong_paths_serve_nothing(root: GraphQLClient) -> None:
    await put_blob(root, "admin/file")
    cases: list[str] = [
        "admin/../../mail.db",
        "..",
        "admin//file",
        "/etc/passwd",
        "admin/file%00",
        "ab/",
        "admin/" + "x/" * 2000,
        "%2e%2e/%2e%2e/etc/passwd",
        "admin/.part-x",
        "zz/x",
    ]
    for case in each_case(cases):
        with case as path:
            url = f"/rest/blobs/hot/{quote(path, safe='')}"
            response = await root.http.get(url, headers=root.headers)
            assert response.status_code in {400, 404}
            assert len(response.content) < 1000
            response = await root.http.get(
                f"/rest/blobs/{quote(path, safe='')}/x", headers=root.headers
            )
            assert response.status_code in {400, 404}
            assert await load_audit_entries(root, "Blob.url") == []


async def test_missing_object_is_not_found(root: GraphQLClient) -> None:
    response = await root.http.get("/rest/blobs/hot/admin/none", headers=root.headers)
    assert response.status_code == 404


async def test_damaged_blob_is_no_download(
    ada: GraphQLClient, root: GraphQLClient, tmp_path: Any
) -> None:
    await deliver_text_attachment(ada, large_body(7))
    (node,) = (await list_blobs(root))["nodes"]
    url = await url_of_blob(root, node["path"])
    file = tmp_path / "blobs" / node["path"]
    whole = file.read_bytes()
    file.write_bytes(whole[:-9] + b"different")
    response = await root.http.get(url)
    assert response.status_code >= 500
    file.write_bytes(whole)
    assert (await root.http.get(url)).status_code == 200
