"""Sieve tests and loops of MIME parts (RFC 5703)."""

import pytest

from mail.sieve import SieveRunError
from tests.support.mail.sieve_runs import script_actions, script_problems

REQUIRE = (
    'require ["foreverypart", "mime", "extracttext", "variables", "fileinto", "relational"];\n'
)
MULTIPART_MESSAGE = b"""\
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
ADD_ID = 'if header :mime :matches "content-id" "*" { set "n" "${n}${1}"; } set "n" "${n}|";'


def run_and_collect(script: str, raw: bytes = MULTIPART_MESSAGE) -> str:
    """Run a script and return the value of its variable n."""
    (action,) = script_actions(f'{REQUIRE} {script} fileinto "n${{n}}";', raw)
    return action.removeprefix("into n")


LOOP_CASES = [
    (f"foreverypart {{ {ADD_ID} }}", "|one|two|three|four||five|"),
    (f'foreverypart {{ {ADD_ID} if header :mime "content-id" "two" {{ break; }} }}', "|one|two|"),
    (f'foreverypart {{ {ADD_ID} foreverypart {{ {ADD_ID} }} set "n" "${{n}}."; }}',
     "|one|two|three|four||five|.one|.two|three|.three|.four||.|.five|."),
    (f'foreverypart :name "a" {{ {ADD_ID} foreverypart {{ {ADD_ID} break :name "A"; }} }}',
     "|one|"),
    (f'foreverypart {{ {ADD_ID} foreverypart {{ {ADD_ID} break; }} }}',
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


@pytest.mark.parametrize(("script", "expected"), LOOP_CASES)
def test_foreverypart_visits_parts(script: str, expected: str) -> None:
    assert run_and_collect(script) == expected


MIME_ASPECT_CASES = [
    (":type", "content-type", "multipart|text|multipart|text|message|text|application|"),
    (":subtype", "content-type", "mixed|plain|alternative|html|rfc822|plain|x-thing|"),
    (":type", "content-disposition", "attachment|"),
    (":subtype", "content-disposition", "|"),
    (':param "charset"', "content-type", "|utf-8||||||"),
    (':param ["FORMAT", "charset"]', "content-type", "|fixed||||||"),
    (':param "filename"', "content-disposition", "\u00fc.html|"),
    (":type", "subject", "||"),
]


@pytest.mark.parametrize(("aspect", "field", "expected"), MIME_ASPECT_CASES)
def test_mime_header_aspect(aspect: str, field: str, expected: str) -> None:
    test = f'header :mime {aspect} :matches "{field}" "*"'
    assert (
        run_and_collect(f'foreverypart {{ if {test} {{ set "n" "${{n}}${{1}}|"; }} }}') == expected
    )


WHOLE_MESSAGE_CASES = [
    ('header :mime :contenttype "content-type" "multipart/mixed"', True),
    ('header :mime :contenttype "content-type" "text/html"', False),
    ('header :mime :anychild :contenttype "content-type" "text/html"', True),
    ('header :mime :anychild :count "eq" "content-id" "5"', True),
    ('header :mime :anychild "subject" "inner"', True),
    ('header :mime "subject" "inner"', False),
    ('exists :mime :anychild ["subject", "content-id"]', True),
    ('address :mime :anychild "from" "inner@b.c"', True),
]


@pytest.mark.parametrize(("test", "expected"), WHOLE_MESSAGE_CASES)
def test_mime_tag_outside_loop_applies_to_whole_message(test: str, expected: bool) -> None:
    assert script_actions(f"{REQUIRE} if {test} {{ discard; }}", MULTIPART_MESSAGE) == (
        ["discard"] if expected else ["keep"]
    )


def test_extracttext_returns_part_text() -> None:
    script = 'foreverypart {{ extracttext {} "v"; set "n" "${{n}}${{v}}|"; }}'
    assert run_and_collect(script.format("")) == "|Hello text||Hi there||inner text|secret|"
    assert run_and_collect(script.format(":first 2 :upper")) == "|HE||HI||IN|SE|"
    assert run_and_collect(script.format(":length")) == "0|10|0|8|0|10|6|"


def test_message_without_parts_is_one_part() -> None:
    raw = b"Content-ID: x\n\ntext\n"
    assert run_and_collect(f"foreverypart {{ {ADD_ID} foreverypart {{ {ADD_ID} }} }}", raw) == "x|"


def test_extracttext_reads_only_beginning_of_large_part() -> None:
    raw = MULTIPART_MESSAGE.replace(b"Hello text", b"Hello" + b" text" * 1_000_000)
    script = 'foreverypart { extracttext "v"; if string :matches "${v}" "Hello*" { discard; } }'
    assert script_actions(REQUIRE + script, raw) == ["discard"]


def test_too_many_parts_raise() -> None:
    raw = b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--b\n\nx\n" * 6_000
    with pytest.raises(SieveRunError, match="takes too long"):
        script_actions(f"{REQUIRE} foreverypart {{ }}", raw)


INVALID_SCRIPTS = [
    ("break;", "The command break must be inside a foreverypart loop."),
    ('extracttext "v";', "The command extracttext must be inside a foreverypart loop."),
    ('foreverypart :name "a" { break :name "b"; }',
     'The command break must be inside a foreverypart loop with the name "b".'),
    ('foreverypart { if header :anychild "a" "b" { } }', ":anychild requires :mime."),
    ('if header :type "a" "b" { }', ":type requires :mime."),
    ('if header :mime :type :subtype "a" "b" { }',
     "The tag :subtype conflicts with an earlier tag."),
    ('if address :mime :type "from" "b" { }', "address does not support :type."),
    ('foreverypart;', "The command foreverypart must have a block in {}."),
    ('foreverypart { extracttext "a b"; }', "is not a variable name."),
]  # fmt: skip


@pytest.mark.parametrize(("script", "problem"), INVALID_SCRIPTS)
def test_invalid_script_has_problem(script: str, problem: str) -> None:
    (message,) = script_problems(REQUIRE + script)
    assert problem in message
