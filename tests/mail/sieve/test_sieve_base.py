"""Sieve base language (RFC 5228) and its early extensions."""

from dataclasses import replace
from typing import Any

import pytest

from mail.sieve import SieveEnvelope, SieveRunError, VacationReply, limits
from tests.support.mail.sieve_runs import (
    SAMPLE_ENVELOPE,
    SAMPLE_MESSAGE,
    is_test_true,
    run_script,
    script_actions,
)

ACTION_CASES = [
    ("", ["keep"]),
    ("keep;", ["keep"]),
    ("keep; keep;", ["keep"]),
    ("discard;", ["discard"]),
    ("discard; keep;", ["discard", "keep"]),
    ("stop; discard;", ["keep"]),
    ('if true { stop; } redirect "a@example.org";', ["keep"]),
    ('redirect "a@example.org";', ["to a@example.org"]),
    ('redirect "a@example.org"; redirect "A@example.org"; keep;', ["to a@example.org", "keep"]),
    ('if false { keep; } elsif true { discard; } else { stop; }', ["discard"]),
    ('if false { keep; } elsif false { discard; } else { redirect "a@b.cd"; }', ["to a@b.cd"]),
    ('if false { discard; }', ["keep"]),
    ('require "fileinto"; fileinto "A"; fileinto "B";', ["into A", "into B"]),
    ('require "fileinto"; fileinto "A"; fileinto "A";', ["into A"]),
    ('require "fileinto"; fileinto "inbox"; keep;', ["keep"]),
    ('require "fileinto"; fileinto "Gr\u00fc\u00dfe/x";', ["into Gr\u00fc\u00dfe/x"]),
    ('require ["fileinto", "copy"]; fileinto :copy "A";', ["into A :copy", "keep"]),
    ('require ["fileinto", "copy"]; fileinto :copy "INBOX";', ["into INBOX :copy"]),
    ('require "copy"; redirect :copy "a@b.cd";', ["to a@b.cd :copy", "keep"]),
    ('require ["fileinto", "mailbox"]; fileinto :create "A";', ["into A :create"]),
    ('require "reject"; reject "no";', ["reject no"]),
    ('require "ereject"; ereject "no";', ["ereject no"]),
    ('require "reject"; discard; reject "no";', ["discard", "reject no"]),
    ('require "reject"; reject text:\r\nno\r\n..\r\n.x\r\n.\r\n;', ["reject no\r\n.\r\n.x\r\n"]),
]  # fmt: skip


@pytest.mark.parametrize(("script", "expected"), ACTION_CASES)
def test_script_actions(script: str, expected: list[str]) -> None:
    assert script_actions(script) == expected


TEST_CASES = [
    ("true", True),
    ("not false", True),
    ("allof (true, true)", True),
    ("allof (true, false)", False),
    ("anyof (false, true)", True),
    ("anyof (false)", False),
    ("size :over 500", True),
    ("size :over 1K", False),
    ("size :under 1M", True),
    (f"size :over {len(SAMPLE_MESSAGE)}", False),
    (f"size :under {len(SAMPLE_MESSAGE)}", False),
    ('exists "x-number"', True),
    ('exists ["from", "x-none"]', False),
    ('header "x-number" "7"', True),
    ('header :is "subject" "gr\u00fc\u00dfe AUS london"', True),
    # i;ascii-casemap folds ASCII only.
    (
        'header :is "subject" "GR\u00dc\u00dfe aus London"',
        False,
    ),
    ('header :comparator "i;octet" :contains "subject" "London"', True),
    ('header :comparator "i;octet" :contains "subject" "london"', False),
    ('header :contains ["x-none", "x-many"] ["zz", "TW"]', True),
    ('header :contains "x-none" ""', False),
    ('header :contains "x-many" ""', True),
    ('header :is "x-folded" "begins  and ends"', True),
    ('header :matches "subject" "Gr??e*"', True),
    ('header :matches "subject" "*on"', True),
    ('header :matches "subject" "Gr?e*"', False),
    ('header :matches "subject" "*"', True),
    ('header :matches "x-number" "\\\\*"', False),
    ('header :matches "x-number" "\\\\7"', True),
    ('address "from" "ada@example.org"', True),
    ('address :all :is "from" "ada@example.org"', True),
    ('address :domain "to" "example.NET"', True),
    ('address :localpart ["to", "cc"] "carol"', True),
    ('address :localpart "to" "carol"', False),
    ('address :contains "to" "Bob B."', False),
]


@pytest.mark.parametrize(("test", "expected"), TEST_CASES)
def test_base_tests(test: str, expected: bool) -> None:
    assert is_test_true(test) is expected


@pytest.mark.parametrize(
    ("delimiters", "local_part", "expected"),
    [
        ("+", "eve+list", "eve(list)"),
        ("+-", "eve-new+list", "eve(new+list)"),
        ("-", "eve+list", "eve+list"),
        ("+", "eve+", "eve()"),
        ("", "eve+list", "eve+list"),
    ],
)
def test_local_part_is_split_at_first_configured_delimiter(
    delimiters: str, local_part: str, expected: str
) -> None:
    script = """require ["fileinto", "subaddress", "variables"];
    if address :user :matches "to" "*" { set "user" "${1}"; }
    if address :detail :matches "to" "*" { set "detail" "(${1})"; }
    fileinto "${user}${detail}";"""
    raw = f"To: {local_part}@example.net\r\n\r\n".encode()
    actions = script_actions(script, raw, subaddress_delimiters=delimiters)
    assert actions == [f"into {expected}"]


EXTENSION_TEST_CASES = [
    ('envelope "from" "ada@example.org"', "envelope", True),
    ('envelope :domain "to" "example.com"', "envelope", True),
    ('envelope :is ["from", "to"] "bob"', "envelope", False),
    ('address :user "to" "eve"', "subaddress", True),
    ('address :detail "to" "list"', "subaddress", True),
    ('address :detail "from" ""', "subaddress", False),
    ('address :user "from" "ada"', "subaddress", True),
    ('header :count "eq" "x-many" "3"', "relational", True),
    ('address :count "ge" ["to", "cc"] "3"', "relational", True),
    ('header :count "lt" "x-none" "1"', "relational", True),
    ('header :value "gt" "x-many" "three"', "relational", True),
    ('header :value "gt" "x-many" "two"', "relational", False),
    ('header :value "le" "x-number" "7"', "relational", True),
    ('header :value "ne" "x-number" "7"', "relational", False),
    ('header :is "subject" "gr${unicode: FC DF}e aus london"', "encoded-character", True),
    ('header :is "subject" "gr${hex: C3 bc}${hex:c3 9f}e aus london"', "encoded-character", True),
    ('header :is "x-number" "${hex:3 7}"', "encoded-character", False),
    ('header :is "x-number" "${unicode:37}"', "encoded-character", True),
    ('body :contains "café"', "body", True),
    ('body :contains "bold word"', "body", True),
    ('body :contains "<b>"', "body", False),
    ('body :contains "inner text"', "body", True),
    ('body :contains "secret"', "body", False),
    ('body :raw :contains "caf=E9"', "body", True),
    ('body :raw :contains "Subject: =?"', "body", False),
    ('body :content "text" :contains "<b>"', "body", True),
    ('body :content "text/plain" :contains "<b>"', "body", False),
    ('body :content "" :contains "secret thing"', "body", True),
    ('body :content "application/x-thing" :is "secret thing"', "body", True),
    ('body :content "message/rfc822" :contains "the inner one"', "body", True),
    ('body :content "message/rfc822" :contains "inner text"', "body", False),
    ('body :content "multipart" :contains "before"', "body", True),
    ('body :content "multipart" :contains "behind"', "body", True),
    ('body :content "multipart" :contains "--b"', "body", False),
    ('body :content "text/plain/x" :contains ""', "body", False),
    ('mailboxexists ["INBOX", "Old/2025"]', "mailbox", True),
    ('mailboxexists ["INBOX", "New"]', "mailbox", False),
    ('ihave "copy"', "ihave", True),
    ('not ihave ["copy", "x-none"]', "ihave", True),
]  # fmt: skip


@pytest.mark.parametrize(("test", "extension", "expected"), EXTENSION_TEST_CASES)
def test_extension_tests(test: str, extension: str, expected: bool) -> None:
    assert is_test_true(test, extension, mailboxes={"INBOX", "Old/2025"}) is expected


NUMERIC_CASES = [  # text, relation, key
    ("7", "eq", "007", True), ("10", "gt", "9", True), ("10", "lt", "9", False),
    ("x", "gt", "9999999999999999999999", True), ("x", "eq", "y", True), ("12x", "eq", "12", True),
    ("99999999999999999999999999", "gt", "1", True), ("-1", "eq", "x", True), ("", "ge", "5", True),
]  # fmt: skip


@pytest.mark.parametrize(("text", "relation", "key", "expected"), NUMERIC_CASES)
def test_numeric_comparator(text: str, relation: str, key: str, expected: bool) -> None:
    numeric = "comparator-i;ascii-numeric"
    test = f'string :value "{relation}" :comparator "i;ascii-numeric" "{text}" "{key}"'
    assert is_test_true(test, "variables", "relational", numeric) is expected


def test_bounce_has_empty_envelope_sender() -> None:
    bounce = SieveEnvelope("", "bob@example.com")
    for part in ("", ":localpart", ":domain"):
        assert is_test_true(f'envelope {part} :is "from" ""', "envelope", envelope=bounce)


SET_CASES = [
    ('set "a" "x";', "${a}", "x"),
    ('set "a" "x"; set "A" "${a}${A}y";', "${a}", "xxy"),
    ("", "${a}", ""),
    ("", "$", "$"), ("", "${", "${"), ("", "${}", "${}"), ("", "${a b}", "${a b}"),
    ("", "${a-b}${${a}}", "${a-b}${}"),
    ('set "a" "x";', "$${a}}", "$x}"),
    ('set :upper "a" "gr\u00fcn";', "${a}", "GR\u00fcN"),
    ('set :lower "a" "GR\u00dcN";', "${a}", "gr\u00dcn"),
    ('set :upperfirst :lower "a" "juMBlEd";', "${a}", "Jumbled"),
    ('set :lowerfirst "a" "ABC";', "${a}", "aBC"),
    ('set :length "a" "gr\u00fcn";', "${a}", "4"),
    ('set :length "a" "";', "${a}", "0"),
    ('set :quotewildcard "a" "Rock* \\\\?";', "${a}", "Rock\\\\* \\\\\\\\\\\\?"),
    ('set :length :quotewildcard "a" "**";', "${a}", "4"),
]  # fmt: skip


@pytest.mark.parametrize(("commands", "source", "value"), SET_CASES)
def test_variable_expansion(commands: str, source: str, value: str) -> None:
    test = f'string :comparator "i;octet" "{source}" "{value}"'
    script = f'require ["variables"]; {commands} if {test} {{ discard; }}'
    assert script_actions(script) == ["discard"]


WILDCARD_CASES = [  # pattern, text, text of each wildcard
    ("*", "abc", ["abc"]),
    ("a*c", "abc", ["b"]),
    ("*b*", "abbb", ["a", "bb"]),
    ("?b*", "abc", ["a", "c"]),
    ("*?", "abc", ["ab", "c"]),
    ("?*?", "abc", ["a", "b", "c"]),
    ("**x**", "axb", ["", "a", "", "b"]),
    ("*-?-*-*", "a-b-c-d-e", ["a", "b", "c", "d-e"]),
    ("[*] *", "[list] [sub]", ["list", "[sub]"]),
    ("*a?c*d?", "xabcabcabdd!", ["x", "b", "abcabd", "!"]),
    ("A*", "aBC", ["BC"]),
    ("\\\\?*", "?x", ["x"]),
]


@pytest.mark.parametrize(("pattern", "text", "matches"), WILDCARD_CASES)
def test_wildcards_match_shortest_text(pattern: str, text: str, matches: list[str]) -> None:
    expected_text = "|".join([text, *matches, ""])
    numbers = "|".join(f"${{{number}}}" for number in range(len(matches) + 2))
    script = f"""require ["variables"];
        if string :matches "{text}" ["zzz", "{pattern}"] {{
            if string :is "{numbers}" "{expected_text}" {{ discard; }} }}"""
    assert script_actions(script) == ["discard"]


def test_match_variables_stay_until_next_match() -> None:
    script = """require ["variables", "fileinto"];
        if header :matches "x-number" "*" { }
        if header :matches "x-none" "*" { }
        if not header :matches "subject" "?" { fileinto "${1}"; }"""
    assert script_actions(script) == ["into 7"]


def test_body_test_sets_no_match_variables() -> None:
    script = """require ["variables", "fileinto", "body"];
        if body :matches "*caf*" { fileinto "x${1}"; }"""
    assert script_actions(script) == ["into x"]


FLAG_CASES = [
    ('setflag "\\\\Seen"; keep;', ["keep \\Seen"]),
    ('setflag "\\\\seen $Junk"; addflag ["\\\\SEEN", "$junk Work"];', ["keep \\Seen $Junk Work"]),
    ('setflag ["a", "b"]; removeflag "A"; fileinto "X";', ["into X b"]),
    ('addflag "a"; setflag ""; keep;', ["keep"]),
    ('addflag "a"; keep :flags ["b", "c d"];', ["keep b c d"]),
    ('addflag "a"; fileinto :flags "" "X"; keep;', ["into X", "keep a"]),
    ('addflag "\\\\Recent \\\\Odd a(b"; keep;', ["keep"]),
    ('setflag "v" ["a", "b"]; addflag "v" "c"; removeflag "v" "a"; keep :flags "${v}";',
     ["keep b c"]),
    ('addflag "a"; if hasflag "A" { discard; }', ["discard"]),
    ('addflag "a"; if hasflag ["b", "c"] { discard; }', ["keep a"]),
    ('addflag "a b"; if hasflag :count "eq" :comparator "i;octet" "2" { discard; }', ["discard"]),
    ('setflag "v" "abc"; if hasflag :contains "v" "B" { discard; }', ["discard"]),
    ('setflag "v" "abc"; if hasflag :matches ["u", "v"] "*d" { discard; }', ["keep"]),
]  # fmt: skip


@pytest.mark.parametrize(("script", "expected"), FLAG_CASES)
def test_flag_actions(script: str, expected: list[str]) -> None:
    requirements = 'require ["imap4flags", "fileinto", "variables", "relational"];'
    assert script_actions(requirements + script) == expected


IHAVE_CASES = [
    ('if ihave "copy" { redirect :copy "a@b.cd"; }', ["to a@b.cd :copy", "keep"]),
    ('if ihave "x-none" { frobnicate :wildly; } else { discard; }', ["discard"]),
    ('if allof (ihave "x-none", x_none :very) { discard; }', ["keep"]),
    ('if anyof (not ihave "x-none", x_none :very) { discard; }', ["discard"]),
    ('if not ihave "x-none" { discard; } else { frobnicate; }', ["discard"]),
]


@pytest.mark.parametrize(("script", "expected"), IHAVE_CASES)
def test_ihave_skips_missing_extension(script: str, expected: list[str]) -> None:
    assert script_actions(f'require "ihave"; {script}') == expected


def test_error_command_ends_script() -> None:
    with pytest.raises(SieveRunError, match="The script reports an error: no copy") as error:
        run_script('require "ihave"; if true { error "no copy"; }')
    assert [step.text for step in error.value.trace] == ["true: true"]


VACATION_SCRIPT = 'require "vacation"; vacation {} "away";'
OWN_ADDRESSES = {"bob@example.com"}


def run_vacation_script(tags: str, raw: bytes = SAMPLE_MESSAGE, **options: Any) -> list[str]:
    options = {"addresses": OWN_ADDRESSES, **options}
    return script_actions(VACATION_SCRIPT.format(tags), raw, **options)


def test_vacation_reply() -> None:
    subject = "Auto: Gr\u00fc\u00dfe aus London"
    assert run_vacation_script("") == [f"answer ada@example.org {7 * 86400} {subject} away", "keep"]
    assert (
        run_vacation_script(':days 3 :subject "No\n way"')[0]
        == "answer ada@example.org 259200 No way away"
    )
    assert run_vacation_script(":days 0")[0].startswith("answer ada@example.org 86400 ")
    assert run_vacation_script(":days 9999")[0].startswith(f"answer ada@example.org {90 * 86400} ")


def test_vacation_seconds() -> None:
    actions = script_actions(
        'require "vacation-seconds"; vacation :seconds 0 "away";', addresses=OWN_ADDRESSES
    )
    assert actions[0].startswith("answer ada@example.org 0 ")


def vacation_reply(tags: str) -> VacationReply:
    (reply, _) = run_script(VACATION_SCRIPT.format(tags), addresses=OWN_ADDRESSES).actions
    assert isinstance(reply, VacationReply)
    return reply


def test_different_vacation_replies_have_different_handles() -> None:
    handles = [
        vacation_reply(tags).handle for tags in ("", ':subject "x"', ":mime", ':from "a@b.cd"')
    ]
    assert len(set(handles)) == 4
    assert vacation_reply(":days 3").handle == vacation_reply("").handle
    assert vacation_reply(':handle "x"').handle == "x"
    reply_with_from = vacation_reply(':mime :from "Bob <bob@example.com>"')
    assert (reply_with_from.is_mime, reply_with_from.from_) == (True, "Bob <bob@example.com>")


@pytest.mark.parametrize(
    "field",
    [
        b"List-Id: <x>", b"List-Unsubscribe: <x>", b"Auto-Submitted: auto-replied (x)",
        b"Precedence: bulk", b"X-Auto-Response-Suppress: All", b"X-Spam-Flag: YES",
    ],
)  # fmt: skip
def test_automatic_message_gets_no_vacation_reply(field: bytes) -> None:
    assert run_vacation_script("", field + b"\n" + SAMPLE_MESSAGE) == ["keep"]


def test_message_of_a_person_gets_a_vacation_reply() -> None:
    field = b"Auto-Submitted: (by hand) No (comment); x=y\n"
    assert run_vacation_script("", field + SAMPLE_MESSAGE) == run_vacation_script("")


@pytest.mark.parametrize(
    "sender",
    ["", "bob@example.com", "MAILER-DAEMON@x.org", "owner-x@x.org", "x-request@x.org",
     "noreply@x.org", "x-bounces@x.org"],
)  # fmt: skip
def test_automatic_sender_gets_no_vacation_reply(sender: str) -> None:
    assert run_vacation_script("", envelope=replace(SAMPLE_ENVELOPE, sender=sender)) == ["keep"]


def test_message_to_other_address_gets_no_vacation_reply() -> None:
    message_to_other_address = SAMPLE_MESSAGE.replace(b"bob@", b"rob@")
    assert run_vacation_script("", message_to_other_address) == ["keep"]
    assert (
        len(
            run_vacation_script(
                ':addresses ["x@y.zz", "Rob@Example.com"]', message_to_other_address
            )
        )
        == 2
    )
    trace = [
        step.text for step in run_script(VACATION_SCRIPT.format(""), message_to_other_address).trace
    ]
    assert trace == ["vacation: no reply, because the message is not addressed to this account"]


RUN_ERRORS = [
    ('vacation "a"; vacation "b";', "only once"),
    ('reject "a"; keep;', "A rejected message can't be stored, redirected or answered"),
    ('fileinto "a"; reject "a";', "A rejected message can't be stored, redirected or answered"),
    ('reject "a"; reject "b";', "A rejected message can't be stored, redirected or answered"),
    ('vacation "a"; reject "b";', "A rejected message can't be stored, redirected or answered"),
    (
        'reject "b"; redirect "a@b.cd";',
        "A rejected message can't be stored, redirected or answered",
    ),
    ('fileinto "${none}";', "is not a mailbox: A path must not contain empty levels"),
    ('redirect "${none}";', "is not an email address"),
    ('redirect "a@b.cd\n";', "An address must not begin or end with spaces"),
    (
        "".join(f'redirect "a{n}@b.cd";' for n in range(limits.MAX_REDIRECTS + 1)),
        "A script can redirect at most 4 times",
    ),
    ("".join(f'fileinto "a{n}";' for n in range(limits.MAX_ACTIONS + 1)), "actions"),
    ("".join(f'set "a{n}" "b";' for n in range(limits.MAX_VARIABLES + 1)), "variables"),
    ('if address "${none}" "x" { }', "is not a header field with addresses"),
    ('if envelope "${none}" "x" { }', "is not an envelope part"),
    ('setflag "${none}" "x";', "is not a variable name"),
]


@pytest.mark.parametrize(("script", "expected_error"), RUN_ERRORS)
def test_run_error_ends_script(script: str, expected_error: str) -> None:
    names = ["vacation", "reject", "fileinto", "variables", "envelope", "imap4flags"]
    requirements = ", ".join(f'"{name}"' for name in names)
    # A variable hides the invalid address until the script runs.
    script = script.replace('redirect "a@b.cd\n"', 'set "x" "a@b.cd\n"; redirect "${x}"')
    with pytest.raises(SieveRunError, match=expected_error) as error:
        run_script(f"require [{requirements}];\n{script}", addresses=OWN_ADDRESSES)
    assert error.value.line >= 2


def test_trace_has_steps_with_positions() -> None:
    script = 'require "fileinto";\nif not header "x-number" ["8"] {\n    fileinto "A";\n}'
    assert [(*step.position, step.text) for step in run_script(script).trace] == [
        (2, 8, "header: false"),
        (2, 4, "not: true"),
        (3, 5, "fileinto: A"),
    ]
