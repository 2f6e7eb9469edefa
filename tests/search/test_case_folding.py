"""One rule of folding for all conditions of a search: words, people, subjects, files, folders."""

import sys
import unicodedata
from collections.abc import Iterator

import pytest
from sqlalchemy import func, literal, select, text

from models.runtime.environment import Environment
from models.store.text_folding import PART_LENGTH, fold_text
from resolvers.mailboxes.loaders import NewMailboxes, create_mailboxes
from tests.conftest import Client, context, receive
from tests.support.operations.search_operations import search_subjects

RAW = """From: =?utf-8?q?J=C3=B6rg_M=C3=BCller-Stra=C3=9Fe?= <jorg@example.net>
To: =?utf-8?q?=CE=9F=CE=94=CE=A5=CE=A3=CE=A3=CE=95=CE=A5=CE=A3?= <odysseus@example.net>
Cc: =?utf-8?b?{cc}?= <dmitrij@example.net>
Subject: Crème brûlée
List-Id: Bücher <bucher.example.net>
X-Note: =?utf-8?q?d=C3=A9j=C3=A0_vu?=
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary=x

--x
Content-Type: text/plain; charset=utf-8

Ångström measured it.
--x
Content-Type: application/pdf
Content-Disposition: attachment; filename*=utf-8''%C3%9Cbersicht.pdf

x
--x--
"""
LETTER = RAW.replace("{cc}", "0JTQvNC40YLRgNC40Lk=").replace("\n", "\r\n").encode()
SPELLINGS = {
    "": ("muller", "MULLER", "Müller", "mu\u0308ller", "odysseus", "brulee", "ångstrom"),
    "from:": ("muller", "MÜLLER", "mu\u0308ller", "müller", "strasse", "STRAßE", "jörg@EXAMPLE"),
    "to:": ("οδυσσευς", "ΟΔΥΣΣΕΎΣ", "δυσσευσ", "дмитрии", "ДМИТРИЙ"),
    "toonly:": ("Οδυσσεύς", "ODYSSEUS@"),
    "cc:": ("дмитрии", "ДМИТРИЙ", "dmitrij"),
    "recipient:": ("дмитрии", "ΟΔΥΣΣΕΎΣ"),
    "subject:": ("brulee", "CRÈME", "creme"),
    "list:": ("BUCHER", "bücher"),
    "filename:": ("ubersicht", "ÜBERSICHT", "u\u0308bersicht"),
    "body:": ("angstrom", "ÅNGSTROM"),
    "text:": ("angstrom", "Deja", "muller"),
    "header:x-note:": ("deja", "DÉJÀ"),
}


def conditions() -> Iterator[str]:
    for key, spellings in SPELLINGS.items():
        for spelling in spellings:
            yield f'header:"x-note: {spelling}"' if "header" in key else f"{key}{spelling}"


async def test_case_and_accents_count_in_no_condition(ada: Client) -> None:
    await receive(ada, LETTER)
    missed = [
        query for query in conditions() if await search_subjects(ada, query) != ["Crème brûlée"]
    ]
    assert missed == []
    assert await search_subjects(ada, "from:moller") == []
    assert await search_subjects(ada, "from:\u0301") == []


async def test_folders_are_found_in_any_case_unless_one_is_called_so(ada: Client) -> None:
    await create_mailboxes(context(ada), NewMailboxes(["Bücher/Neu", "Work", "WORK"]))
    boxes = (await ada("{ viewer { user { mailboxes { id path } } } }"))["viewer"]["user"]
    keys = {box["path"]: box["id"] for box in boxes["mailboxes"]}
    for name in ("Bücher/Neu", "Work", "WORK"):
        await receive(ada, name)
        await move(ada, keys["INBOX"], keys[name])
    for query, expected in (
        ("mailbox:Work", {"Work"}),
        ("mailbox:WORK", {"WORK"}),
        ("mailbox:work", {"Work", "WORK"}),
        ("mailbox:bucher/neu", {"Bücher/Neu"}),
        ("mask:bucher/*", {"Bücher/Neu"}),
        ("mask:w%", {"Work", "WORK"}),
        ('mailbox:"inbox"', set()),
    ):
        assert set(await search_subjects(ada, query)) == expected, query


async def move(client: Client, from_id: str, to_id: str) -> None:
    done = await client(
        """mutation ($from: ID!, $to: ID!) { messageMove(input: {
          select: {filter: {mailbox: {id: $from}}}, to: {id: $to}}) { errors { message } } }""",
        **{"from": from_id, "to": to_id},
    )
    assert done["messageMove"]["errors"] == []


async def test_the_store_folds_as_the_program_does(world: Environment) -> None:
    """Each character that Unicode assigns, alone and beside a letter that it may combine with."""
    known = [
        chr(code)
        for code in range(1, sys.maxunicode + 1)
        if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co")
    ]
    different = []
    for start in range(0, len(known), 500):
        texts = [f"{c}e{c} {c}Σ" for c in known[start : start + 500]]
        columns = [func.fold_text(literal(one)).label(f"c{n}") for n, one in enumerate(texts)]
        (row,) = await world.database.read(select(*columns))
        different += [one for one, found in zip(texts, row, strict=True) if found != fold_text(one)]
    assert different == []
    assert (await world.database.read(select(func.fold_text(text("NULL")))))[0][0] is None


@pytest.mark.parametrize("blank", [" ", "x"])
def test_a_long_text_is_folded_in_pieces(blank: str) -> None:
    whole = f"Müller{blank}" * (PART_LENGTH // 2)
    assert fold_text(whole) == f"muller{blank}" * (PART_LENGTH // 2)
