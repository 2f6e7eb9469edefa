"""File names of attachments: no path, no control characters, none that turn text around."""

import io
import unicodedata
import zipfile
from urllib.parse import quote, unquote

import orjson
import pytest
from sqlalchemy import select, update
from sqlmodel import col

from models.messages.tables import Message
from models.store.columns import core_table
from tests.conftest import Client, receive

ASKED = """{ viewer { user { messages { nodes { attachmentsUrl attachments { filename url }
  structure { parts { filename } } } } } } }"""
BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
NAMES = {
    "/etc/passwd": "passwd",
    "../../x.txt": "x.txt",
    "..\\..\\x.txt": "x.txt",
    "C:\\Users\\ada\\x.txt": "x.txt",
    "\\\\host\\share\\x.txt": "x.txt",
    "a/b\\c/": "c",
    "invoice\u202efdp.exe": "invoicefdp.exe",
    f"a{BIDI}b.txt": "ab.txt",
    "a\x01\x07\x1b[31m\x7f\x85\x9fb.txt": "a[31mb.txt",
    "a\r\nContent-Type: x.txt": "aContent-Type: x.txt",
    "a\u2028b\u2029.txt": "ab.txt",
    "a/\u202e../b.txt": "b.txt",
    "..": None,
    "/": None,
    BIDI: None,
    "Grüße 日本語.txt": "Grüße 日本語.txt",
}


def letter(name: str, way: str) -> bytes:
    coded = quote(name, safe="")
    field = {
        "extended": f"Content-Disposition: attachment; filename*=utf-8''{coded}",
        "word": "Content-Disposition: attachment; "
        f'filename="=?utf-8?q?{quote(name, safe="").replace("%", "=")}?="',
        "type": f"Content-Disposition: attachment\r\nContent-Type: x/y; name*=utf-8''{coded}",
    }[way]
    return (
        "Subject: x\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\nHi\r\n"
        f"--x\r\n{field}\r\n\r\nbytes\r\n--x--\r\n"
    ).encode()


def harmless(name: str) -> bool:
    odd = {"Cc", "Cf", "Zl", "Zp"}
    return not set("/\\") & set(name) and not odd & {unicodedata.category(c) for c in name}


async def check(client: Client, expected: str | None) -> None:
    """The name in answers, in the head of the download, and in the zip."""
    (node,) = (await client(ASKED))["viewer"]["user"]["messages"]["nodes"]
    (file,) = node["attachments"]
    assert file["filename"] == expected
    assert node["structure"]["parts"][1]["filename"] == expected
    head = (await client.http.get(file["url"])).headers["content-disposition"]
    plain, _, coded = head.partition("filename*=UTF-8''")
    assert harmless(plain.encode("latin-1").decode())
    assert harmless(unquote(coded))
    packed = (await client.http.get(node["attachmentsUrl"])).content
    (name,) = zipfile.ZipFile(io.BytesIO(packed)).namelist()
    assert harmless(name)
    assert name
    if expected and expected.isascii():
        assert expected.rpartition(".")[2] in name


@pytest.mark.parametrize("way", ["extended", "word", "type"])
@pytest.mark.parametrize("name", NAMES)
async def test_a_file_name_is_one_plain_name(ada: Client, name: str, way: str) -> None:
    await receive(ada, letter(name, way))
    await check(ada, NAMES[name])


async def test_names_that_were_stored_before_are_plain_too(ada: Client) -> None:
    await receive(ada, letter("x.txt", "extended"))
    evil = "/etc/\u202egpj.exe"
    world = ada.world
    (row,) = await world.database.read(select(col(Message.attachments), col(Message.structure)))
    files = [{**row.attachments[0], "filename": evil}]
    tree = row.structure.replace(b'"x.txt"', orjson.dumps(evil))
    assert tree != row.structure
    async with world.write_session() as session:
        this = update(core_table(Message)).values(attachments=files, structure=tree)
        await (await session.connection()).execute(this)
    await check(ada, "gpj.exe")


async def test_an_attached_message_is_named_by_its_subject(ada: Client) -> None:
    inner = "Subject: =?utf-8?q?1/2_=E2=80=AEfdp?=\r\n\r\nHi\r\n"
    await receive(
        ada,
        "Subject: x\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\nHi\r\n"
        f"--x\r\nContent-Type: message/rfc822\r\n\r\n{inner}\r\n--x--\r\n".encode(),
    )
    (node,) = (await ada(ASKED))["viewer"]["user"]["messages"]["nodes"]
    assert [file["filename"] for file in node["attachments"]] == ["1_2 fdp.eml"]
