"""Files: stored, listed, fetched, and given to others by a link."""

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
from models.events.journal import ChangeKind
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role
from resolvers.admin import tasks
from resolvers.files import shares
from tests.conftest import Client, Clock, make_client, make_key
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.user_operations import ERRORS, PASSWORD, id_of, run
from tests.support.operations.file_operations import (
    FILE_FIELDS,
    LARGE_CONTENT,
    SHARE_FIELDS,
    share_file,
    store_file,
    upload_file,
)
from tests.support.stores.counter_check import journal, reached, rows

LIST = """query ($query: String, $first: Int, $after: String) { viewer { user { files(
  query: $query, first: $first, after: $after
) { nodes { id filename shares { id } } totalCount pageInfo { hasNextPage endCursor } } } } }"""
pytestmark = pytest.mark.usefixtures("examined")


async def remove(client: Client, name: str, *keys: str) -> Any:
    document = f"""mutation ($ids: [ID!]!) {{
      {name}(input: {{ids: $ids}}) {{ deletedIds {ERRORS} }} }}"""
    return (await client(document, ids=keys))[name]


async def page(client: Client, **ask: Any) -> Any:
    return (await client(LIST, **ask))["viewer"]["user"]["files"]


def codes(done: Any) -> list[tuple[str, list[str]]]:
    return [(error["code"], error["path"]) for error in done["errors"]]


async def post(client: Client, path: str, content: bytes, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await client.http.post(path, content=content, headers={**client.headers, **named})


# storing


@pytest.mark.parametrize(
    ("given", "name", "kind", "content"),
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
async def test_text_becomes_a_file(
    ada: Client, given: dict[str, Any], name: str | None, kind: str, content: bytes
) -> None:
    last = await reached(ada.world, ada.user.id)
    more = {key: value for key, value in given.items() if key != "text"}
    done = await upload_file(ada, given["text"], **more)
    assert done["errors"] == []
    file = done["file"]
    assert (file["contentType"], file["size"]) == (kind, len(content))
    assert name == file["filename"] or file["filename"].startswith("upload-2030-01-01")
    assert file["hash"] == hashlib.sha256(content).hexdigest()
    got = await ada.http.get(file["url"])
    assert (got.status_code, got.content) == (200, content)
    assert got.headers["content-disposition"].startswith("attachment;")
    assert got.headers["x-content-type-options"] == "nosniff"
    assert got.headers["etag"] == f'"{file["hash"]}"'
    key = global_ids.decode("File", file["id"])
    assert await journal(ada.world, ada.user.id, last) == [(ChangeKind.FILE_CHANGED, [key])]


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"content": {"text": "x", "upload": "y"}}, None),
        ({"content": {"upload": global_ids.encode("Upload", 7)}}, ["content"]),
        ({"content": {"text": "?"}, "encoding": "BASE64"}, ["content"]),
        ({"content": {"text": "0"}, "encoding": "HEX"}, ["content"]),
        ({"content": {"text": "x"}, "filename": "a\nb"}, ["filename"]),
        ({"content": {"text": "x"}, "contentType": "no type"}, ["contentType"]),
    ],
)
async def test_what_is_no_file_is_refused(
    ada: Client, given: dict[str, Any], path: list[str] | None
) -> None:
    document = (
        "mutation ($input: FileUploadInput!) { fileUpload(input: $input) { errors { path } } }"
    )
    answer = await ada.raw(document, input=given)
    if path is None:
        assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"
    else:
        assert answer["data"]["fileUpload"]["errors"] == [{"path": path}]
    assert (await page(ada))["totalCount"] == 0


@pytest.mark.parametrize("content", [b"small", LARGE_CONTENT], ids=["small", "big"])
async def test_bytes_that_were_sent_before_become_a_file(ada: Client, content: bytes) -> None:
    sent = await post(ada, "/rest/uploads", content, content_type="image/png",
                      content_disposition='attachment; filename="pond.png"')  # fmt: skip
    given = {"content": {"upload": sent.json()["id"]}}
    for _ in range(2):
        checked = await run(ada, "fileUpload", FILE_FIELDS, **given, options={"validateOnly": True})
        assert checked["errors"] == []
    file = (await run(ada, "fileUpload", FILE_FIELDS, **given))["file"]
    assert (file["filename"], file["contentType"]) == ("pond.png", "image/png")
    assert (await ada.http.get(file["url"])).content == content
    assert codes(await run(ada, "fileUpload", FILE_FIELDS, **given)) == [("NOT_FOUND", ["content"])]
    assert await rows(ada.world, "SELECT id FROM uploads") == []


@pytest.mark.parametrize("content", [b"small", LARGE_CONTENT], ids=["small", "big"])
async def test_a_file_comes_in_one_step(ada: Client, content: bytes) -> None:
    answer = await post(ada, "/rest/files/my%20pond.pdf", content)
    facts = answer.json()
    assert (answer.status_code, facts["filename"]) == (201, "my pond.pdf")
    assert facts["contentType"] == "application/pdf"
    path = answer.headers["location"]
    got = await ada.http.get(path, headers=ada.headers)
    assert got.content == content
    part = await ada.http.get(path, headers={**ada.headers, "Range": "bytes=1-3"})
    assert (part.status_code, part.content) == (206, content[1:4])
    seen = {**ada.headers, "If-None-Match": got.headers["etag"]}
    assert (await ada.http.get(path, headers=seen)).status_code == 304


async def test_bodies_that_are_none_are_refused(
    ada: Client, world: Environment, tmp_path: Path
) -> None:
    form = {"content_type": "multipart/form-data; boundary=x"}
    assert (await post(ada, "/rest/files/x", b"--x--", **form)).status_code == 415
    assert (await ada.http.post("/rest/files/x", content=b"x")).status_code == 401
    scopes = {"user_id": ada.user.id, "role": Role.USER, "scopes": ["MAIL_READ"]}
    reads = {"Authorization": f"Bearer {await make_key(world, 'reads', **scopes)}"}
    refused = await ada.http.post("/rest/files/x", content=b"x", headers=reads)
    assert refused.status_code == 403
    small = replace(world, options=replace(world.options, upload_max=9, files_quota=15))
    app = httpx.ASGITransport(app=create_app(small, spool_folder=tmp_path))
    there = replace(ada, world=small, http=httpx.AsyncClient(transport=app, base_url="http://t"))
    assert (await post(there, "/rest/files/x", b"x" * 10)).status_code == 413
    (error,) = (await upload_file(there, "x" * 10))["errors"]
    assert (error["code"], error["limit"], error["used"]) == ("LIMIT_REACHED", 9, 10)
    assert (await post(there, "/rest/files/x", b"x" * 9)).status_code == 201
    full = await post(there, "/rest/files/x", b"x" * 9)
    extensions = full.json()["errors"][0]["extensions"]
    assert (full.status_code, extensions["limit"], extensions["used"]) == (413, 15, 9)
    (error,) = (await upload_file(there, "x" * 9))["errors"]
    assert (error["code"], error["limit"], error["used"]) == ("LIMIT_REACHED", 15, 9)
    assert (await upload_file(there, "x" * 6))["errors"] == []


# lists


async def test_files_are_listed_found_and_deleted(ada: Client, clock: Clock) -> None:
    for name in ("a.txt", "B.TXT", "c.pdf"):
        await store_file(ada, name, filename=name)
        clock.tick(seconds=1)
    answer = await page(ada)
    assert [node["filename"] for node in answer["nodes"]] == ["c.pdf", "B.TXT", "a.txt"]
    half = await page(ada, query="txt", first=1)
    assert (half["totalCount"], half["pageInfo"]["hasNextPage"]) == (2, True)
    rest = await page(ada, query="txt", first=1, after=half["pageInfo"]["endCursor"])
    assert [node["filename"] for node in half["nodes"] + rest["nodes"]] == ["B.TXT", "a.txt"]
    keys = [node["id"] for node in answer["nodes"]]
    await share_file(ada, {"id": keys[0]})
    missing = global_ids.encode("File", 7)
    assert codes(await remove(ada, "fileDelete", keys[0], missing)) == [("NOT_FOUND", ["ids"])]
    assert (await page(ada))["totalCount"] == 3
    assert (await remove(ada, "fileDelete", *keys[:2]))["deletedIds"] == keys[:2]
    assert [node["id"] for node in (await page(ada))["nodes"]] == keys[2:]
    assert await rows(ada.world, "SELECT id FROM file_shares") == []


async def test_many_files_cost_as_many_statements_as_one(
    ada: Client, statements: list[str]
) -> None:
    counts = []
    for many in (1, 20):
        for n in range(many):
            await share_file(ada, await store_file(ada, f"{many} {n}"))
        del statements[:]
        await page(ada, first=50)
        counts.append(len(statements))
    assert counts[0] == counts[1]


# links


async def test_a_link_leads_to_the_file_and_is_counted(ada: Client, clock: Clock) -> None:
    link = await share_file(ada, await store_file(ada))
    clock.tick(days=50)
    got = await ada.http.get(link["url"])
    assert (got.status_code, got.text) == (200, "Ducks.")
    assert got.headers["content-disposition"] == 'attachment; filename="pond.txt"'
    assert got.headers["x-content-type-options"] == "nosniff"
    assert (await ada.http.head(link["url"])).status_code == 200
    again = await ada.http.get(link["url"], headers={"Range": "bytes=2-"})
    assert (again.status_code, again.text) == (206, "cks.")
    seen = {"If-None-Match": got.headers["etag"]}
    assert (await ada.http.get(link["url"], headers=seen)).status_code == 304
    document = "query ($id: ID!) { node(id: $id) { ... on FileShare { accessCount expiresAt } } }"
    node = (await ada(document, id=link["id"]))["node"]
    assert node == {"accessCount": 1, "expiresAt": "2030-05-31T00:00:00Z"}
    clock.tick(days=100)
    assert (await ada.http.get(link["url"])).status_code == 404
    assert (await ada(document, id=link["id"]))["node"] is None
    assert (await housekeeping.run_round(ada.world)).shares == 1


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"mode": "ATTACH"}, ["mode"]),
        ({"expiration": {"at": "2029-01-01T00:00:00Z"}}, ["expiration"]),
        ({"expiration": {"in": "PT0S"}}, ["expiration"]),
        ({"expiration": {"in": "P50000D"}}, ["expiration"]),
        ({"password": "short"}, ["password"]),
        ({"file": global_ids.encode("File", 7)}, ["file"]),
    ],
)
async def test_links_that_cannot_be_are_refused(
    ada: Client, given: dict[str, Any], path: list[str]
) -> None:
    file = await store_file(ada)
    done = await run(ada, "fileShareCreate", SHARE_FIELDS, **{"file": file["id"], **given})
    assert [error["path"] for error in done["errors"]] == [path]
    assert await rows(ada.world, "SELECT id FROM file_shares") == []


@pytest.mark.parametrize("mode", ["LINK", "SHARE_RO", "SHARE_RW"])
async def test_only_one_kind_of_link_is_written_to(ada: Client, mode: str) -> None:
    file = await store_file(ada)
    link, writes = (
        await share_file(ada, file, mode=mode),
        await share_file(ada, file, mode="SHARE_RW"),
    )
    put = await ada.http.put(link["url"], content=b"Geese.")
    assert put.status_code == (204 if mode == "SHARE_RW" else 403)
    assert (await ada.http.put(writes["url"], content=b"Swans!")).status_code == 204
    got = await ada.http.get(link["url"])
    assert got.text == ("Ducks." if mode == "SHARE_RO" else "Swans!")
    assert (await ada.http.get(writes["url"])).text == "Swans!"
    await collect_garbage(ada.world, ada.world.object_store)
    assert (await ada.http.get(link["url"])).text == got.text


async def test_writing_heeds_what_was_seen_and_what_fits(ada: Client, world: Environment) -> None:
    link = await share_file(ada, await store_file(ada), mode="SHARE_RW")
    etag = (await ada.http.get(link["url"])).headers["etag"]
    seen = {"If-Match": etag}
    put = await ada.http.put(link["url"], content=b"Geese.", headers=seen)
    assert put.status_code == 204
    assert put.headers["etag"] == f'"{hashlib.sha256(b"Geese.").hexdigest()}"'
    late = await ada.http.put(link["url"], content=b"Swans.", headers=seen)
    assert late.status_code == 412
    huge = await ada.http.put(
        link["url"], content=b"x", headers={"Content-Length": str(world.options.upload_max + 1)}
    )
    assert huge.status_code == 413
    assert (await ada.http.get(link["url"])).text == "Geese."
    assert (await page(ada))["totalCount"] == 1


async def test_a_password_is_asked_for_and_guessing_is_slow(ada: Client, clock: Clock) -> None:
    link = await share_file(ada, await store_file(ada), password=PASSWORD)
    assert link["hasPassword"] is True
    ((kept,),) = await rows(ada.world, "SELECT password FROM file_shares")
    assert kept.startswith("$argon2id$")
    asked = await ada.http.get(link["url"])
    assert (asked.status_code, asked.headers["www-authenticate"][:5]) == (401, "Basic")
    assert "Ducks" not in asked.text
    right = ("anybody", PASSWORD)
    assert (await ada.http.get(link["url"], auth=right)).text == "Ducks."
    for _ in range(ada.world.options.login_failures):
        wrong = await ada.http.get(link["url"], auth=("x", "wrong"))
        assert wrong.status_code == 401
    late = await ada.http.get(link["url"], auth=right)
    assert (late.status_code, "retry-after" in late.headers) == (429, True)
    clock.tick(minutes=3)
    assert (await ada.http.get(link["url"], auth=right)).status_code == 200
    odd = {"Authorization": "Basic no base64"}
    assert (await ada.http.get(link["url"], headers=odd)).status_code == 401


async def test_addresses_are_not_guessed_and_not_stored(ada: Client, world: Environment) -> None:
    link = await share_file(ada, await store_file(ada))
    path = link["url"].partition("/share/")[2]
    key = global_ids.decode("FileShare", link["id"])
    assert path == shares.create_token(world, key)
    other = shares.create_token(replace(world, signing_secret=b"x" * 32), key)
    for token in (other, path[:-1], path + "=", path.swapcase(), "x", "%00", "ä", "A" * 5000):
        assert (await ada.http.get(f"/share/{token}")).status_code == 404
    everything = json.dumps([
        [str(column) for column in row] for row in await rows(world, "SELECT * FROM file_shares")
    ])  # fmt: skip
    assert path not in everything


@pytest.mark.parametrize("end", ["share", "file", "user", "disabled"])
async def test_a_link_ends_with_what_it_leads_to(ada: Client, root: Client, end: str) -> None:
    file = await store_file(ada)
    link = await share_file(ada, file)
    who: dict[str, Any] = {"users": {"ids": [id_of(ada)]}}
    match end:
        case "share":
            done = await remove(ada, "fileShareDelete", link["id"])
        case "file":
            done = await remove(ada, "fileDelete", file["id"])
        case "user":
            done = await run(root, "userDelete", "deletedIds", **who)
        case _:
            done = await run(root, "userUpdate", **who, set={"disabled": True})
    assert done["errors"] == []
    assert (await ada.http.get(link["url"])).status_code == 404
    if end == "user":
        assert await tasks.run_next_task(ada.world)
        assert await rows(ada.world, "SELECT id FROM files") == []
        assert await rows(ada.world, "SELECT id FROM file_shares") == []


# whose, and how long


OF_USER = """query ($u: UserRef!) { user(by: $u) { files {
  totalCount nodes { id contentType size createdAt MORE } } } }"""


async def test_administrators_list_the_files_of_others(
    ada: Client, root: Client, over: Client, world: Environment, http: httpx.AsyncClient
) -> None:
    file = await store_file(ada)
    link = await share_file(ada, file)
    acting = await make_domain_admin(world, http, "acting", [AdminPermission.LOGIN_AS])
    who = {"id": id_of(ada)}
    for client in (root, over, acting):
        seen = (await client(OF_USER.replace("MORE", ""), u=who))["user"]["files"]
        facts = {name: file[name] for name in ("id", "contentType", "size", "createdAt")}
        assert seen == {"totalCount": 1, "nodes": [facts]}
    for name in ("filename", "hash", "url", "shares { id url }"):
        for client in (over, acting):
            answer = await client.raw(OF_USER.replace("MORE", name), u=who)
            assert {e["extensions"]["code"] for e in answer["errors"]} == {"FORBIDDEN"}
            assert "pond" not in str(answer)
    asked = OF_USER.replace("MORE", "filename hash url shares { id }")
    (node,) = (await root(asked, u=who))["user"]["files"]["nodes"]
    assert (node["filename"], node["hash"]) == ("pond.txt", file["hash"])
    assert node["shares"] == [{"id": link["id"]}]
    for path, headers in ((node["url"], {}), (f"/rest/files/{file['id']}", root.headers)):
        assert (await http.get(path, headers=headers)).content == b"Ducks."
    refused = await http.get(f"/rest/files/{file['id']}", headers=over.headers)
    assert (refused.status_code, b"pond" in refused.content) == (403, False)
    log = "{ viewer { user { authLog { nodes { action } } } } }"
    seen = (await ada(log))["viewer"]["user"]["authLog"]["nodes"]
    assert {"action": "read mail"} in seen


async def test_files_that_one_may_not_see_are_an_error(
    ada: Client, over: Client, world: Environment, http: httpx.AsyncClient
) -> None:
    top = await make_client(world, http, "top", role=Role.ROOT)
    bare = await make_domain_admin(world, http, "bare")
    for client, other in ((bare, ada), (over, top)):
        await store_file(other)
        answer = await client.raw(OF_USER.replace("MORE", ""), u={"id": id_of(other)})
        (error,) = answer["errors"]
        assert (error["extensions"]["code"], error["path"]) == ("FORBIDDEN", ["user", "files"])


async def test_others_see_and_change_nothing(
    ada: Client, bob: Client, root: Client, world: Environment, http: httpx.AsyncClient
) -> None:
    file = await store_file(ada)
    over = await make_client(world, http, "over", role=Role.ADMIN)
    link = await share_file(ada, file)
    document = "query ($id: ID!) { node(id: $id) { id } }"
    for client in (bob, over, await make_domain_admin(world, http, "chief"), root):
        assert (await client(document, id=link["id"]))["node"] is None
        if client not in (over, root):
            assert (await client(document, id=file["id"]))["node"] is None
            path = f"/rest/files/{file['id']}"
            assert (await http.get(path, headers=client.headers)).status_code == 404
        wanted = ["FORBIDDEN"] if client is root else ["NOT_FOUND"]
        for done in (
            await remove(client, "fileDelete", file["id"]),
            await remove(client, "fileShareDelete", link["id"]),
            await run(client, "fileShareCreate", SHARE_FIELDS, file=file["id"]),
        ):
            assert [error["code"] for error in done["errors"]] == wanted
        done = await upload_file(client, user={"id": id_of(ada)})
        assert done["errors"][0]["code"] in ("NOT_FOUND", "FORBIDDEN", "FORBIDDEN_OPERATION")
    assert (await page(ada))["nodes"] == [
        {"id": file["id"], "filename": "pond.txt", "shares": [{"id": link["id"]}]}
    ]


async def test_files_that_nobody_uses_are_removed(ada: Client, clock: Clock) -> None:
    unused, used, shared = [await store_file(ada, text) for text in ("a", "b", "c")]
    await share_file(ada, shared, expiration={"in": "P2000D"})
    clock.tick(days=300)
    await ada.http.get(f"/rest/files/{used['id']}", headers=ada.headers)
    clock.tick(days=65)
    last = await reached(ada.world, ada.user.id)
    assert (await housekeeping.run_round(ada.world)).files == 1
    key = global_ids.decode("File", unused["id"])
    assert await journal(ada.world, ada.user.id, last) == [(ChangeKind.FILE_CHANGED, [key])]
    left = {node["id"] for node in (await page(ada))["nodes"]}
    assert left == {used["id"], shared["id"]}
