"""Parts of a message one by one (RFC 5703)."""

import pytest

from mail.sieve import SieveRunError
from tests.support.mail.sieve_runs import acts, problems

NEEDED = 'require ["foreverypart", "mime", "extracttext", "variables", "fileinto", "relational"];\n'
LETTER = b"""\
From: a@b.c
Subject: top
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary="b"

pre
--b
Content-Type: text/plain; charset=utf-8; format=fixed
Content-ID: one

Hello text
--b
Content-Type: multipart/alternative; boundary=c
Content-ID: two

--c
Content-Type: text/html
Content-Disposition: attachment; filename*=utf-8''%C3%BC.html
Content-ID: three

<p>Hi <b>there</b></p>
--c--
--b
Content-Type: message/rfc822
Content-ID: four

From: inner@b.c
Subject: inner
Content-Type: text/plain

inner text
--b
Content-Type: application/x-thing
Content-ID: five
Content-Transfer-Encoding: base64

c2VjcmV0
--b--
"""
ID = 'if header :mime :matches "content-id" "*" { set "n" "${n}${1}"; } set "n" "${n}|";'


def collected(script: str, raw: bytes = LETTER) -> str:
    """What a script gathers in its variable n."""
    (found,) = acts(f'{NEEDED} {script} fileinto "n${{n}}";', raw)
    return found.removeprefix("into n")


LOOPS = [
    (f"foreverypart {{ {ID} }}", "|one|two|three|four||five|"),
    (f'foreverypart {{ {ID} if header :mime "content-id" "two" {{ break; }} }}', "|one|two|"),
    (f'foreverypart {{ {ID} foreverypart {{ {ID} }} set "n" "${{n}}."; }}',
     "|one|two|three|four||five|.one|.two|three|.three|.four||.|.five|."),
    (f'foreverypart :name "a" {{ {ID} foreverypart {{ {ID} break :name "A"; }} }}', "|one|"),
    (f'foreverypart {{ {ID} foreverypart {{ {ID} break; }} }}',
     "|one|one|two|three|three|four|||five|"),
    ('foreverypart { if header :matches "subject" "*" { set "n" "${n}${1}|"; } }', "top|" * 7),
    ('foreverypart { if header :mime :matches "subject" "*" { set "n" "${n}${1}|"; } }',
     "top|inner|"),
    ('foreverypart { if exists :mime "content-disposition" { set "n" "${n}x"; } }', "x"),
    ('foreverypart { if exists :mime :anychild "content-disposition" { set "n" "${n}x"; } }',
     "xxx"),
    ('foreverypart { if address :mime :matches "from" "*" { set "n" "${n}${1}|"; } }',
     "a@b.c|inner@b.c|"),
]  # fmt: skip


@pytest.mark.parametrize(("script", "found"), LOOPS)
def test_loops(script: str, found: str) -> None:
    assert collected(script) == found


ASPECTS = [
    (":type", "content-type", "multipart|text|multipart|text|message|text|application|"),
    (":subtype", "content-type", "mixed|plain|alternative|html|rfc822|plain|x-thing|"),
    (":type", "content-disposition", "attachment|"),
    (":subtype", "content-disposition", "|"),
    (':param "charset"', "content-type", "|utf-8||||||"),
    (':param ["FORMAT", "charset"]', "content-type", "|fixed||||||"),
    (':param "filename"', "content-disposition", "\u00fc.html|"),
    (":type", "subject", "||"),
]


@pytest.mark.parametrize(("aspect", "field", "found"), ASPECTS)
def test_what_a_header_says(aspect: str, field: str, found: str) -> None:
    test = f'header :mime {aspect} :matches "{field}" "*"'
    assert collected(f'foreverypart {{ if {test} {{ set "n" "${{n}}${{1}}|"; }} }}') == found


WHOLE = [
    ('header :mime :contenttype "content-type" "multipart/mixed"', True),
    ('header :mime :contenttype "content-type" "text/html"', False),
    ('header :mime :anychild :contenttype "content-type" "text/html"', True),
    ('header :mime :anychild :count "eq" "content-id" "5"', True),
    ('header :mime :anychild "subject" "inner"', True),
    ('header :mime "subject" "inner"', False),
    ('exists :mime :anychild ["subject", "content-id"]', True),
    ('address :mime :anychild "from" "inner@b.c"', True),
]


@pytest.mark.parametrize(("test", "holds"), WHOLE)
def test_without_a_loop_it_is_the_whole_message(test: str, holds: bool) -> None:
    assert acts(f"{NEEDED} if {test} {{ discard; }}", LETTER) == (
        ["discard"] if holds else ["keep"]
    )


def test_texts() -> None:
    script = 'foreverypart {{ extracttext {} "v"; set "n" "${{n}}${{v}}|"; }}'
    assert collected(script.format("")) == "|Hello text||Hi there||inner text|secret|"
    assert collected(script.format(":first 2 :upper")) == "|HE||HI||IN|SE|"
    assert collected(script.format(":length")) == "0|10|0|8|0|10|6|"


def test_a_message_without_parts_is_one() -> None:
    raw = b"Content-ID: x\n\ntext\n"
    assert collected(f"foreverypart {{ {ID} foreverypart {{ {ID} }} }}", raw) == "x|"


def test_only_the_beginning_of_a_large_part_is_read() -> None:
    raw = LETTER.replace(b"Hello text", b"Hello" + b" text" * 1_000_000)
    script = 'foreverypart { extracttext "v"; if string :matches "${v}" "Hello*" { discard; } }'
    assert acts(NEEDED + script, raw) == ["discard"]


def test_many_parts_end_a_run() -> None:
    raw = b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--b\n\nx\n" * 6_000
    with pytest.raises(SieveRunError, match="takes too long"):
        acts(f"{NEEDED} foreverypart {{ }}", raw)


WRONG = [
    ("break;", "break stands in such a foreverypart"),
    ('extracttext "v";', "extracttext stands in such a foreverypart"),
    ('foreverypart :name "a" { break :name "b"; }', "break stands in such a foreverypart"),
    ('foreverypart { if header :anychild "a" "b" { } }', ":anychild stands with :mime"),
    ('if header :type "a" "b" { }', ":type stands with :mime"),
    ('if header :mime :type :subtype "a" "b" { }', ":subtype is one too many"),
    ('if address :mime :type "from" "b" { }', "address knows no :type"),
    ('foreverypart;', "foreverypart has a block in {}"),
    ('foreverypart { extracttext "a b"; }', "is no name of a variable"),
]  # fmt: skip


@pytest.mark.parametrize(("script", "problem"), WRONG)
def test_what_means_nothing(script: str, problem: str) -> None:
    (found,) = problems(NEEDED + script)
    assert problem in found
