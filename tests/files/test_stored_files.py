"""Stored files: upload, listing, download, shares, permissions and retention."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from graph.app import create_app
from graph.types import global_ids
from mail.maintenance import housekeeping
from mail.storage.blobs.garbage_collector import collect_garbage
from models.events.event_types import EventType
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role
from resolvers.admin import tasks
from resolvers.files import shares
from tests.conftest import GraphQLClient, ManualClock, make_api_key, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.user_operations import (
    PASSWORD,
    execute_mutation,
    user_global_id,
)
from tests.support.operations.file_operations import (
    FILE_FIELDS,
    LARGE_CONTENT,
    SHARE_FIELDS,
    share_file,
    store_file,
    upload_file,
)
from tests.support.stores.counter_check import (
    load_journal_entries,
    load_stream_position,
    select_rows,
)

FILES_QUERY = """query ($query: String, $first: Int, $after: String) { viewer { user { files(
  query: $query, first: $first, after: $after
) { nodes { id filename shares { id } } totalCount pageInfo { hasNextPage endCursor } } } } }"""
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def delete_by_ids(client: GraphQLClient, mutation: str, *ids: str) -> Any:
    list_field = {"fileDelete": "files", "fileShareDelete": "fileShares"}[mutation]
    input_fields = {list_field: [{"id": global_id} for global_id in ids]}
    return await execute_mutation(client, mutation, "deletedIds", **input_fields)


async def list_files(client: GraphQLClient, **variables: Any) -> Any:
    return (await client(FILES_QUERY, **variables))["viewer"]["user"]["files"]


def codes_and_paths(payload: Any) -> list[tuple[str, list[str]]]:
    return [(error["code"], error["path"]) for error in payload["errors"]]


async def post_content(
    client: GraphQLClient, path: str, content: bytes, **headers: str
) -> httpx.Response:
    named_headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.http.post(
        path, content=content, headers={**client.headers, **named_headers}
    )


@pytest.mark.parametrize(
    ("fields", "name", "content_type", "content"),
    [
        ({"text": "Grüße", "filename": "a.txt"}, "a.txt", "text/plain", "Grüße".encode()),
        ({"text": "R3J1\nZQ==", "encoding": "BASE64"}, None, "application/octet-stream",
         b"Grue"),
        ({"text": "00ff", "encoding": "HEX", "filename": "x.png"}, "x.png",
         "image/png", b"\x00\xff"),
        ({"text": ""}, None, "text/plain", b""),
        ({"text": "x", "filename": "..\\..\\etc/passwd"}, "passwd", "text/plain", b"x"),
        ({"text": "x", "contentType": "text/x-odd; q=1"}, None, "text/x-odd", b"x"),
    ],
)  # fmt: skip
async def test_text_is_stored_as_file(
    ada: GraphQLClient, fields: dict[str, Any], name: str | None, content_type: str, content: bytes
) -> None:
    last_position = await load_stream_position(ada.environment, ada.user.id)
    options = {file_id: value for file_id, value in fields.items() if file_id != "text"}
    payload = await upload_file(ada, fields["text"], **options)
    assert payload["errors"] == []
    file = payload["file"]
    assert (file["contentType"], file["size"]) == (content_type, len(content))
    assert name == file["filename"] or file["filename"].startswith("upload-2030-01-01")
    assert file["sha256"] == hashlib.sha256(content).hexdigest()
    download = await ada.http.get(file["url"])
    assert (download.status_code, download.content) == (200, content)
    assert download.headers["content-disposition"].startswith("attachment;")
    assert download.headers["x-content-type-options"] == "nosniff"
    assert download.headers["etag"] == f'"{file["sha256"]}"'
    file_id = global_ids.decode("File", file["id"])
    assert await load_journal_entries(ada.environment, ada.user.id, last_position) == [
        (EventType.FILE_CHANGED, [file_id])
    ]


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"content": {"text": "x", "upload": "y"}}, None),
        ({"content": {"upload": global_ids.encode("Upload", 7)}}, ["content"]),
        ({"content": {"text": "?"}, "encoding": "BASE64"}, ["content"]),
        ({"content": {"text": "0"}, "encoding": "HEX"}, ["content"]),
        ({"content": {"text": "x"}, "filename": "a\nb"}, ["filename"]),
        ({"content": {"text": "x"}, "contentType": "no type"}, ["contentType"]),
    ],
)
async def test_invalid_file_input_is_refused(
    ada: GraphQLClient, fields: dict[str, Any], path: list[str] | None
) -> None:
    document = (
        "mutation ($input: FileUploadInput!) { fileUpload(input: $input) { errors { path } } }"
    )
    response = await ada.execute(document, input=fields)
    if path is None:
        assert response["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"
    else:
        assert response["data"]["fileUpload"]["errors"] == [{"path": path}]
    assert (await list_files(ada))["totalCount"] == 0


@pytest.mark.parametrize("content", [b"small", LARGE_CONTENT], ids=["small", "big"])
async def test_upload_is_stored_as_file(ada: GraphQLClient, content: bytes) -> None:
    upload = await post_content(ada, "/rest/uploads", content, content_type="image/png",
                      content_disposition='attachment; filename="pond.png"')  # fmt: skip
    fields = {"content": {"upload": upload.json()["id"]}}
    for _ in range(2):
        dry_run = await execute_mutation(
            ada, "fileUpload", FILE_FIELDS, **fields, options={"validateOnly": True}
        )
        assert dry_run["errors"] == []
    file = (await execute_mutation(ada, "fileUpload", FILE_FIELDS, **fields))["file"]
    assert (file["filename"], file["contentType"]) == ("pond.png", "image/png")
    assert (await ada.http.get(file["url"])).content == content
    assert codes_and_paths(await execute_mutation(ada, "fileUpload", FILE_FIELDS, **fields)) == [
        ("NOT_FOUND", ["content"])
    ]
    assert await select_rows(ada.environment, "SELECT id FROM uploads") == []


@pytest.mark.parametrize("content", [b"small", LARGE_CONTENT], ids=["small", "big"])
async def test_file_is_stored_by_one_request(ada: GraphQLClient, content: bytes) -> None:
    response = await post_content(ada, "/rest/files/my%20pond.pdf", content)
    stored = response.json()
    assert (response.status_code, stored["filename"]) == (201, "my pond.pdf")
    assert stored["contentType"] == "application/pdf"
    path = response.headers["location"]
    download = await ada.http.get(path, headers=ada.headers)
    assert download.content == content
    partial = await ada.http.get(path, headers={**ada.headers, "Range": "bytes=1-3"})
    assert (partial.status_code, partial.content) == (206, content[1:4])
    conditional_headers = {**ada.headers, "If-None-Match": download.headers["etag"]}
    assert (await ada.http.get(path, headers=conditional_headers)).status_code == 304


async def test_invalid_unauthorized_or_too_large_bodies_are_refused(
    ada: GraphQLClient, environment: Environment, tmp_path: Path
) -> None:
    form_headers = {"content_type": "multipart/form-data; boundary=x"}
    assert (await post_content(ada, "/rest/files/x", b"--x--", **form_headers)).status_code == 415
    assert (await ada.http.post("/rest/files/x", content=b"x")).status_code == 401
    scopes = {"user_id": ada.user.id, "role": Role.USER, "scopes": ["MAIL_READ"]}
    read_only_headers = {
        "Authorization": f"Bearer {await make_api_key(environment, 'reads', **scopes)}"
    }
    refused = await ada.http.post("/rest/files/x", content=b"x", headers=read_only_headers)
    assert refused.status_code == 403
    limited_world = replace(
        environment, options=replace(environment.options, upload_max_size=9, files_quota=15)
    )
    app = httpx.ASGITransport(app=create_app(limited_world, spool_folder=tmp_path))
    limited_client = replace(
        ada, environment=limited_world, http=httpx.AsyncClient(transport=app, base_url="http://t")
    )
    assert (await post_content(limited_client, "/rest/files/x", b"x" * 10)).status_code == 413
    (error,) = (await upload_file(limited_client, "x" * 10))["errors"]
    assert (error["code"], error["limit"], error["used"]) == ("LIMIT_REACHED", 9, 10)
    assert (await post_content(limited_client, "/rest/files/x", b"x" * 9)).status_code == 201
    over_quota = await post_content(limited_client, "/rest/files/x", b"x" * 9)
    extensions = over_quota.json()["errors"][0]["extensions"]
    assert (over_quota.status_code, extensions["limit"], extensions["used"]) == (413, 15, 9)
    (error,) = (await upload_file(limited_client, "x" * 9))["errors"]
    assert (error["code"], error["limit"], error["used"]) == ("LIMIT_REACHED", 15, 9)
    assert (await upload_file(limited_client, "x" * 6))["errors"] == []


async def test_files_are_listed_searched_and_deleted(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    for name in ("a.txt", "B.TXT", "c.pdf"):
        await store_file(ada, name, filename=name)
        clock.tick(seconds=1)
    all_files = await list_files(ada)
    assert [node["filename"] for node in all_files["nodes"]] == ["c.pdf", "B.TXT", "a.txt"]
    first_page = await list_files(ada, query="txt", first=1)
    assert (first_page["totalCount"], first_page["pageInfo"]["hasNextPage"]) == (2, True)
    second_page = await list_files(
        ada, query="txt", first=1, after=first_page["pageInfo"]["endCursor"]
    )
    assert [node["filename"] for node in first_page["nodes"] + second_page["nodes"]] == [
        "B.TXT",
        "a.txt",
    ]
    file_ids = [node["id"] for node in all_files["nodes"]]
    await share_file(ada, {"id": file_ids[0]})
    missing_id = global_ids.encode("File", 7)
    assert codes_and_paths(await delete_by_ids(ada, "fileDelete", file_ids[0], missing_id)) == [
        ("NOT_FOUND", ["files", "1"])
    ]
    assert (await list_files(ada))["totalCount"] == 3
    assert (await delete_by_ids(ada, "fileDelete", *file_ids[:2]))["deletedIds"] == file_ids[:2]
    assert [node["id"] for node in (await list_files(ada))["nodes"]] == file_ids[2:]
    assert await select_rows(ada.environment, "SELECT id FROM file_shares") == []


async def test_files_are_listed_with_constant_statements(
    ada: GraphQLClient, statements: list[str]
) -> None:
    counts = []
    for file_count in (1, 20):
        for n in range(file_count):
            await share_file(ada, await store_file(ada, f"{file_count} {n}"))
        del statements[:]
        await list_files(ada, first=50)
        counts.append(len(statements))
    assert counts[0] == counts[1]


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
    assert (await housekeeping.run_round(ada.environment)).shares == 1


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"mode": "ATTACH"}, ["mode"]),
        ({"expiresAt": {"at": "2029-01-01T00:00:00Z"}}, ["expiresAt"]),
        ({"expiresAt": {"fromNow": "PT0S"}}, ["expiresAt"]),
        ({"expiresAt": {"fromNow": "P50000D"}}, ["expiresAt"]),
        ({"password": "short"}, ["password"]),
        ({"file": {"id": global_ids.encode("File", 7)}}, ["file"]),
    ],
)
async def test_invalid_share_input_is_refused(
    ada: GraphQLClient, fields: dict[str, Any], path: list[str]
) -> None:
    file = await store_file(ada)
    payload = await execute_mutation(
        ada, "fileShareCreate", SHARE_FIELDS, **{"file": {"id": file["id"]}, **fields}
    )
    assert [error["path"] for error in payload["errors"]] == [path]
    assert await select_rows(ada.environment, "SELECT id FROM file_shares") == []


@pytest.mark.parametrize("mode", ["LINK", "READ_ONLY_LINK", "WRITABLE_LINK"])
async def test_only_writable_share_accepts_put(ada: GraphQLClient, mode: str) -> None:
    file = await store_file(ada)
    share, writable_share = (
        await share_file(ada, file, mode=mode),
        await share_file(ada, file, mode="WRITABLE_LINK"),
    )
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


USER_FILES_QUERY = """query ($u: UserRef!) { user(by: $u) { files {
  totalCount nodes { id contentType size createdAt MORE } } } }"""


async def test_admin_lists_files_of_user_without_contents(
    ada: GraphQLClient,
    root: GraphQLClient,
    admin_client: GraphQLClient,
    environment: Environment,
    http: httpx.AsyncClient,
) -> None:
    file = await store_file(ada)
    share = await share_file(ada, file)
    domain_admin = await make_domain_admin(
        environment, http, "acting", [AdminPermission.IMPERSONATE]
    )
    user_ref = {"id": user_global_id(ada)}
    for client in (root, admin_client, domain_admin):
        visible = (await client(USER_FILES_QUERY.replace("MORE", ""), u=user_ref))["user"]["files"]
        expected = {name: file[name] for name in ("id", "contentType", "size", "createdAt")}
        assert visible == {"totalCount": 1, "nodes": [expected]}
    for name in ("filename", "sha256", "url", "shares { id url }"):
        for client in (admin_client, domain_admin):
            response = await client.execute(USER_FILES_QUERY.replace("MORE", name), u=user_ref)
            assert {e["extensions"]["code"] for e in response["errors"]} == {"FORBIDDEN"}
            assert "pond" not in str(response)
    root_query = USER_FILES_QUERY.replace("MORE", "filename sha256 url shares { id }")
    (node,) = (await root(root_query, u=user_ref))["user"]["files"]["nodes"]
    assert (node["filename"], node["sha256"]) == ("pond.txt", file["sha256"])
    assert node["shares"] == [{"id": share["id"]}]
    for path, headers in ((node["url"], {}), (f"/rest/files/{file['id']}", root.headers)):
        assert (await http.get(path, headers=headers)).content == b"Ducks."
    refused = await http.get(f"/rest/files/{file['id']}", headers=admin_client.headers)
    assert (refused.status_code, b"pond" in refused.content) == (403, False)
    security_log_query = "{ viewer { user { authLog { nodes { action } } } } }"
    visible = (await ada(security_log_query))["viewer"]["user"]["authLog"]["nodes"]
    assert {"action": "MESSAGES_READ"} in visible


async def test_files_of_unmanaged_user_are_forbidden(
    ada: GraphQLClient,
    admin_client: GraphQLClient,
    environment: Environment,
    http: httpx.AsyncClient,
) -> None:
    root_client = await make_client(environment, http, "top", role=Role.ROOT)
    domain_admin = await make_domain_admin(environment, http, "bare")
    for client, owner in ((domain_admin, ada), (admin_client, root_client)):
        await store_file(owner)
        response = await client.execute(
            USER_FILES_QUERY.replace("MORE", ""), u={"id": user_global_id(owner)}
        )
        (error,) = response["errors"]
        assert (error["extensions"]["code"], error["path"]) == ("FORBIDDEN", ["user", "files"])


async def test_other_users_cannot_read_or_change_file(
    ada: GraphQLClient,
    bob: GraphQLClient,
    root: GraphQLClient,
    environment: Environment,
    http: httpx.AsyncClient,
) -> None:
    file = await store_file(ada)
    admin_client = await make_client(environment, http, "over", role=Role.ADMIN)
    share = await share_file(ada, file)
    document = "query ($id: ID!) { node(id: $id) { id } }"
    for client in (bob, admin_client, await make_domain_admin(environment, http, "chief"), root):
        assert (await client(document, id=share["id"]))["node"] is None
        if client not in (admin_client, root):
            assert (await client(document, id=file["id"]))["node"] is None
            path = f"/rest/files/{file['id']}"
            assert (await http.get(path, headers=client.headers)).status_code == 404
        expected_codes = ["FORBIDDEN"] if client is root else ["NOT_FOUND"]
        for payload in (
            await delete_by_ids(client, "fileDelete", file["id"]),
            await delete_by_ids(client, "fileShareDelete", share["id"]),
            await execute_mutation(
                client, "fileShareCreate", SHARE_FIELDS, file={"id": file["id"]}
            ),
        ):
            assert [error["code"] for error in payload["errors"]] == expected_codes
        payload = await upload_file(client, user={"id": user_global_id(ada)})
        assert payload["errors"][0]["code"] in ("NOT_FOUND", "FORBIDDEN", "FORBIDDEN_OPERATION")
    assert (await list_files(ada))["nodes"] == [
        {"id": file["id"], "filename": "pond.txt", "shares": [{"id": share["id"]}]}
    ]


async def test_unused_files_are_deleted(ada: GraphQLClient, clock: ManualClock) -> None:
    unused, used, shared = [await store_file(ada, text) for text in ("a", "b", "c")]
    await share_file(ada, shared, expiresAt={"fromNow": "P2000D"})
    clock.tick(days=300)
    await ada.http.get(f"/rest/files/{used['id']}", headers=ada.headers)
    clock.tick(days=65)
    last_position = await load_stream_position(ada.environment, ada.user.id)
    assert (await housekeeping.run_round(ada.environment)).files == 1
    file_id = global_ids.decode("File", unused["id"])
    assert await load_journal_entries(ada.environment, ada.user.id, last_position) == [
        (EventType.FILE_CHANGED, [file_id])
    ]
    remaining_ids = {node["id"] for node in (await list_files(ada))["nodes"]}
    assert remaining_ids == {used["id"], shared["id"]}
