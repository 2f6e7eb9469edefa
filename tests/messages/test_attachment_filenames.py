"""Test that attachment filenames have no path, control or bidirectional characters."""

import io
import unicodedata
import zipfile
from itertools import product
from typing import Any
from urllib.parse import quote, unquote

import orjson
from sqlalchemy import select, update
from sqlmodel import col

from graph.types import global_ids
from mail.storage.message_insert import InsertedMessage
from models.messages.tables import Message
from models.store.columns import core_table
from tests.conftest import GraphQLClient, deliver_to
from tests.support.case_loop import each_case

FILES_QUERY = """query ($id: ID!) { message(by: {id: $id}) { attachmentsUrl
  attachments { filename url } mimeStructure { parts { filename } } } }"""
BIDI_CONTROLS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
EXPECTED_FILENAMES = {
    "/etc/passwd": "passwd",
    "../../x.txt": "x.txt",
    "..\\..\\x.txt": "x.txt",
    "C:\\Users\\ada\\x.txt": "x.txt",
    "\\\\host\\share\\x.txt": "x.txt",
    "a/b\\c/": "c",
    "invoice\u202efdp.exe": "invoicefdp.exe",
    f"a{BIDI_CONTROLS}b.txt": "ab.txt",
    "a\x01\x07\x1b[31m\x7f\x85\x9fb.txt": "a[31mb.txt",
    "a\r\nContent-Type: x.txt": "aContent-Type: x.txt",
    "a\u2028b\u2029.txt": "ab.txt",
    "a/\u202e../b.txt": "b.txt",
    "..": None,
    "/": None,
    BIDI_CONTROLS: None,
    "Grüße 日本語.txt": "Grüße 日本語.txt",
}


def message_with_attachment(name: str, encoding: str) -> bytes:
    quoted_name = quote(name, safe="")
    field = {
        "extended": f"Content-Disposition: attachment; filename*=utf-8''{quoted_name}",
        "word": "Content-Disposition: attachment; "
        f'filename="=?utf-8?q?{quote(name, safe="").replace("%", "=")}?="',
        "type": f"Content-Disposition: attachment\r\nContent-Type: x/y; name*=utf-8''{quoted_name}",
    }[encoding]
    return (
        "Subject: x\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\nHi\r\n"
        f"--x\r\n{field}\r\n\r\nbytes\r\n--x--\r\n"
    ).encode()


def is_safe_filename(name: str) -> bool:
    unsafe_categories = {"Cc", "Cf", "Zl", "Zp"}
    return not set("/\\") & set(name) and not unsafe_categories & {
        unicodedata.category(character) for character in name
    }


async def load_files(client: GraphQLClient, message: InsertedMessage) -> Any:
    """Read the attachments of a message."""
    return (await client(FILES_QUERY, id=global_ids.encode("Message", message.message_id)))[
        "message"
    ]


async def assert_filename_is_shown(
    client: GraphQLClient, message: InsertedMessage, expected: str | None
) -> None:
    """Check the filename in responses, in the download header and in the zip."""
    node = await load_files(client, message)
    (file,) = node["attachments"]
    assert file["filename"] == expected
    assert node["mimeStructure"]["parts"][1]["filename"] == expected
    content_disposition = (await client.http.get(file["url"])).headers["content-disposition"]
    ascii_part, _, encoded_part = content_disposition.partition("filename*=UTF-8''")
    assert is_safe_filename(ascii_part.encode("latin-1").decode())
    assert is_safe_filename(unquote(encoded_part))
    archive = (await client.http.get(node["attachmentsUrl"])).content
    (name,) = zipfile.ZipFile(io.BytesIO(archive)).namelist()
    assert is_safe_filename(name)
    assert name
    if expected and expected.isascii():
        assert expected.rpartition(".")[2] in name


async def test_attachment_filename_is_sanitized(ada: GraphQLClient) -> None:
    for case in each_case(product(EXPECTED_FILENAMES.items(), ["extended", "word", "type"])):
        with case as ((name, expected), encoding):
            message = await deliver_to(ada, message_with_attachment(name, encoding))
            await assert_filename_is_shown(ada, message, expected)


async def test_stored_filename_is_sanitized_when_read(ada: GraphQLClient) -> None:
    message = await deliver_to(ada, message_with_attachment("x.txt", "extended"))
    unsafe_name = "/etc/\u202egpj.exe"
    environment = ada.environment
    (row,) = await environment.database.read(
        select(col(Message.attachments), col(Message.mime_structure))
    )
    files = [{**row.attachments[0], "filename": unsafe_name}]
    structure = row.mime_structure.replace(b'"x.txt"', orjson.dumps(unsafe_name))
    assert structure != row.mime_structure
    async with environment.write_session() as session:
        message_update = update(core_table(Message)).values(
            attachments=files, mime_structure=structure
        )
        await (await session.connection()).execute(message_update)
    await assert_filename_is_shown(ada, message, "gpj.exe")


async def test_attached_message_is_named_by_its_subject(ada: GraphQLClient) -> None:
    inner = "Subject: =?utf-8?q?1/2_=E2=80=AEfdp?=\r\n\r\nHi\r\n"
    message = await deliver_to(
        ada,
        "Subject: x\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\nHi\r\n"
        f"--x\r\nContent-Type: message/rfc822\r\n\r\n{inner}\r\n--x--\r\n".encode(),
    )
    node = await load_files(ada, message)
    assert [file["filename"] for file in node["attachments"]] == ["1_2 fdp.eml"]
