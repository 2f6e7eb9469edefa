"""Stored files: upload, listing, download, permissions and retention."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from graph.app import create_app
from graph.types import global_ids
from mail.maintenance import housekeeping
from models.events.event_types import EventType
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role
from tests.conftest import GraphQLClient, ManualClock, make_api_key, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.user_operations import execute_mutation, user_global_id
from tests.support.case_loop import each_case
from tests.support.operations.file_operations import (
    FILE_FIELDS,
    FILES_QUERY,
    LARGE_CONTENT,
    SHARE_FIELDS,
    delete_by_ids,
    list_files,
    share_file,
    store_file,
    upload_file,
)
from tests.support.stores.counter_check import (
    load_journal_entries,
    load_stream_position,
    select_rows,
)

pytestmark = pytest.mark.usefixtures("verify_consistency")


def codes_and_paths(payload: Any) -> list[tuple[str, list[str]]]:
    return [(error["code"], error["path"]) for error in payload["errors"]]


async def post_content(
    client: GraphQLClient, path: str, content: bytes, **headers: str
) -> httpx.Response:
    named_headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.http.post(
        path, content=content, headers={**client.headers, **named_headers}
    )


async def test_text_is_stored_as_file(ada: GraphQLClient) -> None:
    cases: list[tuple[dict[str, Any], str | None, str, bytes]] = [
        ({"text": "Grüße", "filename": "a.txt"}, "a.txt", "text/plain", "Grüße".encode()),
        ({"text": "R3J1\nZQ==", "encoding": "BASE64"}, None, "application/octet-stream",
         b"Grue"),
        ({"text": "00ff", "encoding": "HEX", "filename": "x.png"}, "x.png",
         "image/png", b"\x00\xff"),
        ({"text": ""}, None, "text/plain", b""),
        ({"text": "x", "filename": "..\\..\\etc/passwd"}, "passwd", "text/plain", b"x"),
        ({"text": "x", "contentType": "text/x-odd; q=1"}, None, "text/x-odd", b"x"),
    ]  # fmt: skip
    for case in each_case(cases):
        with case as (fields, name, content_type, content):
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
                (EventType.FILE_CREATED, [file_id])
            ]


async def test_invalid_file_input_is_refused(ada: GraphQLClient) -> None:
    document = (
        "mutation ($input: FileUploadInput!) { fileUpload(input: $input) { errors { path } } }"
    )
    cases: list[tuple[dict[str, Any], list[str] | None]] = [
        ({"content": {"text": "x", "upload": "y"}}, None),
        ({"content": {"upload": global_ids.encode("Upload", 7)}}, ["content"]),
        ({"content": {"text": "?"}, "encoding": "BASE64"}, ["content"]),
        ({"content": {"text": "0"}, "encoding": "HEX"}, ["content"]),
        ({"content": {"text": "x"}, "filename": "a\nb"}, ["filename"]),
        ({"content": {"text": "x"}, "contentType": "no type"}, ["contentType"]),
    ]
    for case in each_case(cases):
        with case as (fields, path):
            response = await ada.execute(document, input=fields)
            if path is None:
                assert response["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"
            else:
                assert response["data"]["fileUpload"]["errors"] == [{"path": path}]
            assert (await list_files(ada))["totalCount"] == 0


async def test_upload_is_stored_as_file(ada: GraphQLClient) -> None:
    cases: list[bytes] = [b"small", LARGE_CONTENT]
    for case in each_case(cases):
        with case as content:
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
            assert codes_and_paths(
                await execute_mutation(ada, "fileUpload", FILE_FIELDS, **fields)
            ) == [("NOT_FOUND", ["content"])]
            assert await select_rows(ada.environment, "SELECT id FROM uploads") == []


async def test_file_is_stored_by_one_request(ada: GraphQLClient) -> None:
    cases: list[bytes] = [b"small", LARGE_CONTENT]
    for case in each_case(cases):
        with case as content:
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
    limited_environment = replace(
        environment, options=replace(environment.options, upload_max_size=9, files_quota=15)
    )
    app = httpx.ASGITransport(app=create_app(limited_environment, spool_folder=tmp_path))
    limited_client = replace(
        ada,
        environment=limited_environment,
        http=httpx.AsyncClient(transport=app, base_url="http://t"),
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
    first_page = await list_files(ada, filter={"query": "txt"}, first=1)
    assert (first_page["totalCount"], first_page["pageInfo"]["hasNextPage"]) == (2, True)
    second_page = await list_files(
        ada, filter={"query": "txt"}, first=1, after=first_page["pageInfo"]["endCursor"]
    )
    assert [node["filename"] for node in first_page["nodes"] + second_page["nodes"]] == [
        "B.TXT",
        "a.txt",
    ]
    oldest_first = await list_files(ada, filter={"query": "TXT"}, order="CREATED_AT_ASC")
    assert [node["filename"] for node in oldest_first["nodes"]] == ["a.txt", "B.TXT"]
    too_long = await ada.execute(FILES_QUERY, filter={"query": "x" * 1001})
    assert too_long["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"
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
            (node,) = response["data"]["user"]["files"]["nodes"]
            assert (node["id"], node[name.split()[0]]) == (file["id"], None)
    for client in (admin_client, domain_admin):  # the count would tell the name
        filtered_query = USER_FILES_QUERY.replace("files {", 'files(filter: {query: "pond"}) {')
        response = await client.execute(filtered_query.replace("MORE", ""), u=user_ref)
        assert {e["extensions"]["code"] for e in response["errors"]} == {"FORBIDDEN"}
    root_query = USER_FILES_QUERY.replace("MORE", "filename sha256 url shares { id }")
    (node,) = (await root(root_query, u=user_ref))["user"]["files"]["nodes"]
    assert (node["filename"], node["sha256"]) == ("pond.txt", file["sha256"])
    assert node["shares"] == [{"id": share["id"]}]
    for path, headers in ((node["url"], {}), (f"/rest/files/{file['id']}", root.headers)):
        assert (await http.get(path, headers=headers)).content == b"Ducks."
    refused = await http.get(f"/rest/files/{file['id']}", headers=admin_client.headers)
    assert (refused.status_code, b"pond" in refused.content) == (403, False)
    security_log_query = "{ viewer { user { securityLog { nodes { action } } } } }"
    visible = (await ada(security_log_query))["viewer"]["user"]["securityLog"]["nodes"]
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
    assert (await housekeeping.run_housekeeping_round(ada.environment)).files == 1
    file_id = global_ids.decode("File", unused["id"])
    assert await load_journal_entries(ada.environment, ada.user.id, last_position) == [
        (EventType.FILE_DELETED, [file_id])
    ]
    remaining_ids = {node["id"] for node in (await list_files(ada))["nodes"]}
    assert remaining_ids == {used["id"], shared["id"]}
