"""RFC 5228 and its neighbours: what scripts do to a message, by their documents."""

from dataclasses import replace
from typing import Any

import pytest

from mail.sieve import SieveEnvelope, SieveRunError, VacationReply, limits
from tests.support.mail.sieve_runs import ENVELOPE, LETTER, acts, is_true, run

ACTIONS = [
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


@pytest.mark.parametrize(("script", "done"), ACTIONS)
def test_actions(script: str, done: list[str]) -> None:
    assert acts(script) == done


TESTS = [
    ("true", True),
    ("not false", True),
    ("allof (true, true)", True),
    ("allof (true, false)", False),
    ("anyof (false, true)", True),
    ("anyof (false)", False),
    ("size :over 500", True),
    ("size :over 1K", False),
    ("size :under 1M", True),
    (f"size :over {len(LETTER)}", False),
    (f"size :under {len(LETTER)}", False),
    ('exists "x-number"', True),
    ('exists ["from", "x-none"]', False),
    ('header "x-number" "7"', True),
    ('header :is "subject" "gr\u00fc\u00dfe AUS london"', True),
    ('header :is "subject" "GR\u00dc\u00dfe aus London"', False),  # casemap knows ASCII alone
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


@pytest.mark.parametrize(("test", "holds"), TESTS)
def test_tests(test: str, holds: bool) -> None:
    assert is_true(test) is holds


MORE = [
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


@pytest.mark.parametrize(("test", "extension", "holds"), MORE)
def test_tests_of_extensions(test: str, extension: str, holds: bool) -> None:
    assert is_true(test, extension, mailboxes={"INBOX", "Old/2025"}) is holds


NUMBERS = [  # text, relation, key
    ("7", "eq", "007", True), ("10", "gt", "9", True), ("10", "lt", "9", False),
    ("x", "gt", "9999999999999999999999", True), ("x", "eq", "y", True), ("12x", "eq", "12", True),
    ("99999999999999999999999999", "gt", "1", True), ("-1", "eq", "x", True), ("", "ge", "5", True),
]  # fmt: skip


@pytest.mark.parametrize(("text", "relation", "key", "holds"), NUMBERS)
def test_numbers(text: str, relation: str, key: str, holds: bool) -> None:
    numeric = "comparator-i;ascii-numeric"
    test = f'string :value "{relation}" :comparator "i;ascii-numeric" "{text}" "{key}"'
    assert is_true(test, "variables", "relational", numeric) is holds


def test_a_bounce_has_an_empty_sender() -> None:
    bounce = SieveEnvelope("", "bob@example.com")
    for part in ("", ":localpart", ":domain"):
        assert is_true(f'envelope {part} :is "from" ""', "envelope", envelope=bounce)


SET = [
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


@pytest.mark.parametrize(("before", "source", "value"), SET)
def test_variables(before: str, source: str, value: str) -> None:
    test = f'string :comparator "i;octet" "{source}" "{value}"'
    script = f'require ["variables"]; {before} if {test} {{ discard; }}'
    assert acts(script) == ["discard"]


WILD = [  # pattern, text, and what the wildcards are
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


@pytest.mark.parametrize(("pattern", "text", "found"), WILD)
def test_wildcards_take_as_little_as_they_can(pattern: str, text: str, found: list[str]) -> None:
    wanted = "|".join([text, *found, ""])
    numbers = "|".join(f"${{{number}}}" for number in range(len(found) + 2))
    script = f"""require ["variables"];
        if string :matches "{text}" ["zzz", "{pattern}"] {{
            if string :is "{numbers}" "{wanted}" {{ discard; }} }}"""
    assert acts(script) == ["discard"]


def test_what_was_matched_stays_until_something_else_is() -> None:
    script = """require ["variables", "fileinto"];
        if header :matches "x-number" "*" { }
        if header :matches "x-none" "*" { }
        if not header :matches "subject" "?" { fileinto "${1}"; }"""
    assert acts(script) == ["into 7"]


def test_a_body_sets_no_variables() -> None:
    script = """require ["variables", "fileinto", "body"];
        if body :matches "*caf*" { fileinto "x${1}"; }"""
    assert acts(script) == ["into x"]


FLAGS = [
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


@pytest.mark.parametrize(("script", "done"), FLAGS)
def test_flags(script: str, done: list[str]) -> None:
    needed = 'require ["imap4flags", "fileinto", "variables", "relational"];'
    assert acts(needed + script) == done


HAVE = [
    ('if ihave "copy" { redirect :copy "a@b.cd"; }', ["to a@b.cd :copy", "keep"]),
    ('if ihave "x-none" { frobnicate :wildly; } else { discard; }', ["discard"]),
    ('if allof (ihave "x-none", x_none :very) { discard; }', ["keep"]),
    ('if anyof (not ihave "x-none", x_none :very) { discard; }', ["discard"]),
    ('if not ihave "x-none" { discard; } else { frobnicate; }', ["discard"]),
]


@pytest.mark.parametrize(("script", "done"), HAVE)
def test_what_is_not_there_is_stepped_around(script: str, done: list[str]) -> None:
    assert acts(f'require "ihave"; {script}') == done


def test_a_script_can_give_up() -> None:
    with pytest.raises(SieveRunError, match="the script says: no copy") as error:
        run('require "ihave"; if true { error "no copy"; }')
    assert [one.text for one in error.value.trace] == ["true: true"]


AWAY = 'require "vacation"; vacation {} "away";'
OWN = {"bob@example.com"}


def answers(tags: str, raw: bytes = LETTER, **known: Any) -> list[str]:
    known = {"addresses": OWN, **known}
    return acts(AWAY.format(tags), raw, **known)


def test_an_answer() -> None:
    subject = "Auto: Gr\u00fc\u00dfe aus London"
    assert answers("") == [f"answer ada@example.org {7 * 86400} {subject} away", "keep"]
    assert answers(':days 3 :subject "No\n way"')[0] == "answer ada@example.org 259200 No way away"
    assert answers(":days 0")[0].startswith("answer ada@example.org 86400 ")
    assert answers(":days 9999")[0].startswith(f"answer ada@example.org {90 * 86400} ")


def test_seconds_between_answers() -> None:
    done = acts('require "vacation-seconds"; vacation :seconds 0 "away";', addresses=OWN)
    assert done[0].startswith("answer ada@example.org 0 ")


def vacation(tags: str) -> VacationReply:
    (found, _) = run(AWAY.format(tags), addresses=OWN).actions
    assert isinstance(found, VacationReply)
    return found


def test_answers_that_differ_have_other_handles() -> None:
    handles = [vacation(tags).handle for tags in ("", ':subject "x"', ":mime", ':from "a@b.cd"')]
    assert len(set(handles)) == 4
    assert vacation(":days 3").handle == vacation("").handle
    assert vacation(':handle "x"').handle == "x"
    named = vacation(':mime :from "Bob <bob@example.com>"')
    assert (named.is_mime, named.from_) == (True, "Bob <bob@example.com>")


@pytest.mark.parametrize(
    "field",
    [
        b"List-Id: <x>", b"List-Unsubscribe: <x>", b"Auto-Submitted: auto-replied (x)",
        b"Precedence: bulk", b"X-Auto-Response-Suppress: All", b"X-Spam-Flag: YES",
    ],
)  # fmt: skip
def test_what_machines_send_is_not_answered(field: bytes) -> None:
    assert answers("", field + b"\n" + LETTER) == ["keep"]


@pytest.mark.parametrize(
    "sender",
    ["", "bob@example.com", "MAILER-DAEMON@x.org", "owner-x@x.org", "x-request@x.org",
     "noreply@x.org", "x-bounces@x.org"],
)  # fmt: skip
def test_no_machine_is_answered(sender: str) -> None:
    assert answers("", envelope=replace(ENVELOPE, sender=sender)) == ["keep"]


def test_only_what_is_sent_to_oneself_is_answered() -> None:
    others = LETTER.replace(b"bob@", b"rob@")
    assert answers("", others) == ["keep"]
    assert len(answers(':addresses ["x@y.zz", "Rob@Example.com"]', others)) == 2
    trace = [one.text for one in run(AWAY.format(""), others).trace]
    assert trace == ["vacation: no answer, because it is not addressed to this account"]


FAILS = [
    ('vacation "a"; vacation "b";', "only once"),
    ('reject "a"; keep;', "neither stored"),
    ('fileinto "a"; reject "a";', "neither stored"),
    ('reject "a"; reject "b";', "neither stored"),
    ('vacation "a"; reject "b";', "neither stored"),
    ('reject "b"; redirect "a@b.cd";', "neither stored"),
    ('fileinto "${none}";', "no mailbox"),
    ('redirect "${none}";', "no mail address"),
    ('redirect "a@b.cd\n";', "blanks stand around"),
    ("".join(f'redirect "a{n}@b.cd";' for n in range(limits.MAX_REDIRECTS + 1)), "redirects"),
    ("".join(f'fileinto "a{n}";' for n in range(limits.MAX_ACTIONS + 1)), "actions"),
    ("".join(f'set "a{n}" "b";' for n in range(limits.MAX_VARIABLES + 1)), "variables"),
    ('if address "${none}" "x" { }', "no field with addresses"),
    ('if envelope "${none}" "x" { }', "no part of an envelope"),
    ('setflag "${none}" "x";', "no name of a variable"),
]


@pytest.mark.parametrize(("script", "why"), FAILS)
def test_what_ends_a_run(script: str, why: str) -> None:
    names = ["vacation", "reject", "fileinto", "variables", "envelope", "imap4flags"]
    needed = ", ".join(f'"{name}"' for name in names)
    # The address is only known to be none when the script runs.
    script = script.replace('redirect "a@b.cd\n"', 'set "x" "a@b.cd\n"; redirect "${x}"')
    with pytest.raises(SieveRunError, match=why) as error:
        run(f"require [{needed}];\n{script}", addresses=OWN)
    assert error.value.line >= 2


def test_the_trace_says_what_was_done_and_where() -> None:
    script = 'require "fileinto";\nif not header "x-number" ["8"] {\n    fileinto "A";\n}'
    assert [(*one.position, one.text) for one in run(script).trace] == [
        (2, 8, "header: false"),
        (2, 4, "not: true"),
        (3, 5, "fileinto: A"),
    ]
