"""Test that search conditions fold case and accents by one rule."""

import json
import sys
import unicodedata
from collections.abc import Iterator

import pytest
from sqlalchemy import ColumnElement, String, cast, func, literal, select, text

from mail.search import index_worker
from models.runtime.environment import Environment
from models.store.text_folding import PART_LENGTH, FoldedText, fold_text
from resolvers.mailboxes.create import NewMailboxes, create_mailboxes
from tests.conftest import GraphQLClient, client_context, deliver_to
from tests.support.operations.search_operations import search_subjects
from tests.support.stores.counter_check import select_rows

RAW_TEMPLATE = """From: =?utf-8?q?J=C3=B6rg_M=C3=BCller-Stra=C3=9Fe?= <jorg@example.net>
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
RAW_MESSAGE = RAW_TEMPLATE.replace("{cc}", "0JTQvNC40YLRgNC40Lk=").replace("\n", "\r\n").encode()
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
LETTERS_MESSAGE = """MIME-Version: 1.0
From: =?utf-8?q?J=C3=B8rgen_S=C3=A6ther?= <j@example.net>
Subject: =?utf-8?q?Caff=C3=A8_mit_J=C3=A9r=C3=B4me?=
Content-Type: text/plain; charset=utf-8

Ödmjuk hälsning till Jonáš, façon Øresund Łódź.
Decomposed: re\u0301sume\u0301. Đorđe, Þing, Œuvre, ISPARTA, Isp\u0131rt.
한국어시험입니다。
还有可能是定期检修的通知。
"""
LETTERS_QUERIES = (
    "oresund", "ØRESUND", "Øresund", "lodz", "ŁÓDŹ", "jonas", "facon", "odmjuk", "halsning",
    "resume", "résumé", "caffe", "CAFFÈ", "jerome", "dorde", "Đorđe", "thing", "oeuvre", "ispirt",
    "\u0131sparta", "from:saether", "from:Sæther", "from:jorgen", "from:JØRGEN", "body:oresund",
    "body:lodz", "text:saether", "subject:caffe",
    "한국어", "국어", "시험", "어시험", "니다", "한", "body:국어", "可能", "定期检修", "检修的通知",
)  # fmt: skip
FOLD_ALL = {  # the texts of a JSON array
    "sqlite": "SELECT fold_text(value) FROM json_each(:texts) ORDER BY key",
    "postgresql": """
SELECT fold_text(value) FROM jsonb_array_elements_text(CAST(:texts AS jsonb)) WITH ORDINALITY
AS texts (value, position) ORDER BY position
""",
}


def build_queries() -> Iterator[str]:
    for key, spellings in SPELLINGS.items():
        for spelling in spellings:
            yield f'header:"x-note: {spelling}"' if "header" in key else f"{key}{spelling}"


async def test_search_ignores_case_and_accents(ada: GraphQLClient) -> None:
    await deliver_to(ada, RAW_MESSAGE)
    missed_queries = [
        query for query in build_queries() if await search_subjects(ada, query) != ["Crème brûlée"]
    ]
    assert missed_queries == []
    assert await search_subjects(ada, "from:moller") == []
    assert await search_subjects(ada, "from:\u0301") == []


@pytest.mark.parametrize("is_indexed", [False, True])
async def test_letters_without_decomposition_and_parts_of_korean_words_are_found(
    ada: GraphQLClient, environment: Environment, *, is_indexed: bool
) -> None:
    await deliver_to(ada, LETTERS_MESSAGE.encode())
    if is_indexed:
        assert await index_worker.index_next_batch_and_record_contacts(environment) == 1
    missed_queries = [
        query for query in LETTERS_QUERIES if len(await search_subjects(ada, query)) != 1
    ]
    assert missed_queries == []
    assert await search_subjects(ada, "국험") == []


async def test_mailbox_search_ignores_case_without_exact_match(ada: GraphQLClient) -> None:
    await create_mailboxes(client_context(ada), NewMailboxes(["Bücher/Neu", "Work", "WORK"]))
    user = (await ada("{ viewer { user { mailboxes { nodes { id path } } } } }"))["viewer"]["user"]
    ids_by_path = {mailbox["path"]: mailbox["id"] for mailbox in user["mailboxes"]["nodes"]}
    for name in ("Bücher/Neu", "Work", "WORK"):
        await deliver_to(ada, name)
        await move_messages(ada, ids_by_path["INBOX"], ids_by_path[name])
    for query, expected in (
        ("mailbox:Work", {"Work"}),
        ("mailbox:WORK", {"WORK"}),
        ("mailbox:work", {"Work", "WORK"}),
        ("mailbox:bucher/neu", {"Bücher/Neu"}),
        ("pattern:bucher/*", {"Bücher/Neu"}),
        ("pattern:w%", {"Work", "WORK"}),
        ('mailbox:"inbox"', set()),
    ):
        assert set(await search_subjects(ada, query)) == expected, query


async def move_messages(client: GraphQLClient, from_id: str, to_id: str) -> None:
    answer = await client(
        """mutation ($from: ID!, $to: ID!) { messageMove(input: {
          select: {filter: {mailbox: {id: $from}}}, to: {id: $to}}) { errors { message } } }""",
        **{"from": from_id, "to": to_id},
    )
    assert answer["messageMove"]["errors"] == []


async def test_database_folds_text_like_python(environment: Environment) -> None:
    """Test every character that Unicode assigns, alone and beside combining characters."""
    characters = [
        chr(code)
        for code in range(1, sys.maxunicode + 1)
        if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co")
    ]
    different = []
    for start in range(0, len(characters), 5000):
        texts = [
            f"{character}e{character} {character}Σ"
            for character in characters[start : start + 5000]
        ]
        rows = await select_rows(
            environment, FOLD_ALL[environment.database.dialect], texts=json.dumps(texts)
        )
        different += [
            item for item, (folded,) in zip(texts, rows, strict=True) if folded != fold_text(item)
        ]
    assert different == []
    assert (await environment.database.read(select(func.fold_text(text("NULL")))))[0][0] is None


async def test_folded_column_equals_the_function(environment: Environment) -> None:
    texts = [f"{chr(code)}e{chr(code)}Σ"[: 4 - code % 2] for code in range(1, 0x250)]
    columns = [FoldedText(literal(item)).label(f"c{n}") for n, item in enumerate(texts)]
    for start in range(0, len(columns), 100):
        (row,) = await environment.database.read(select(*columns[start : start + 100]))
        assert list(row) == [fold_text(item) for item in texts[start : start + 100]]
    null: ColumnElement[str] = cast(None, String)
    assert (await environment.database.read(select(FoldedText(null))))[0][0] is None


@pytest.mark.parametrize("blank", [" ", "x"])
def test_long_text_is_folded_in_parts(blank: str) -> None:
    long_text = f"Müller{blank}" * (PART_LENGTH // 2)
    assert fold_text(long_text) == f"muller{blank}" * (PART_LENGTH // 2)
