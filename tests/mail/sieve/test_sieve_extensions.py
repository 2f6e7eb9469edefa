"""Sieve extensions: date, index, regex, duplicate, environment, enotify, mailbox and others."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from mail.sieve import FccCopy, MailNotification, SieveRunError, VacationReply, limits
from tests.support.mail.sieve_runs import (
    SAMPLE_MESSAGE,
    action_texts,
    is_test_true,
    run_script,
    script_actions,
    script_problems,
)

DATE_CASES = [
    ('date "date" "date" "2026-03-04"', True),  # in UTC
    ('date :originalzone "date" "date" "2026-03-03"', True),
    ('date :zone "+0930" "date" "time" "11:00:00"', True),
    ('date :originalzone "date" "zone" "-0300"', True),
    ('date "date" "zone" "+0000"', True),
    ('date "date" "month" "03"', True),
    ('date "date" "day" "04"', True),
    ('date "date" "julian" "61103"', True),
    ('date "date" "hour" "01"', True),
    ('date "date" "minute" "30"', True),
    ('date "date" "second" "00"', True),
    ('date "date" "weekday" "3"', True),
    ('date "date" "iso8601" "2026-03-04T01:30:00+00:00"', True),
    ('date :originalzone "date" "std11" "Tue, 03 Mar 2026 22:30:00 -0300"', True),
    ('date :index 2 "received" "hour" "02"', True),  # the date after the semicolon
    ('date :index 1 :last "received" "hour" "02"', True),
    ('date :index 3 "received" "hour" "02"', False),
    ('date "subject" "year" "2026"', False),
    ('date "x-none" "year" ""', False),
    ('date :value "ge" "date" "hour" "01"', True),
    ('date :count "eq" "date" "hour" "1"', True),
    ('date :count "eq" "subject" "hour" "0"', True),
    ('currentdate "iso8601" "2026-03-04T03:06:07+00:00"', True),
    ('currentdate :zone "+0200" "hour" "05"', True),
    ('currentdate :value "lt" "date" "2026-03-05"', True),
    ('currentdate :matches "std11" "Wed, 04 Mar*"', True),
]


@pytest.mark.parametrize(("test", "expected"), DATE_CASES)
def test_date_tests(test: str, expected: bool) -> None:
    assert is_test_true(test, "date", "relational", "index") is expected


def test_dates_use_time_zone_of_user() -> None:
    summer = datetime(2026, 7, 1, 22, 0, tzinfo=UTC)
    berlin = ZoneInfo("Europe/Berlin")
    assert is_test_true(
        'currentdate "iso8601" "2026-07-02T00:00:00+02:00"', "date", now=summer, zone=berlin
    )
    assert is_test_true('date "date" "zone" "+0100"', "date", zone=berlin)


@pytest.mark.parametrize(
    "date",
    [b"Fri, 31 Dec 9999 23:59:59 -2300", b"Mon, 1 Jan 0001 00:00:00 +2300", b"x", b"", b"+9999"],
)
def test_extreme_dates_do_not_raise(date: bytes) -> None:
    raw = b"Date: " + date + b"\n\n"
    for tag in ("", ":originalzone", ':zone "+2359"', ':zone "-2359"'):
        script_actions(f'require "date"; if date {tag} "date" "std11" "x" {{ }}', raw)


INDEX_CASES = [
    ('header :index 1 "x-many" "one"', True),
    ('header :index 2 "x-many" "one"', False),
    ('header :index 1 :last "x-many" "three"', True),
    ('header :index 3 :last "x-many" "one"', True),
    ('header :index 4 :last "x-many" "one"', False),
    ('header :index 4 "x-many" ""', False),
    ('address :index 1 "to" "eve+list@example.net"', True),
    ('address :index 2 "to" "eve+list@example.net"', False),
]


@pytest.mark.parametrize(("test", "expected"), INDEX_CASES)
def test_index_selects_field(test: str, expected: bool) -> None:
    assert is_test_true(test, "index") is expected


REGEX_CASES = [  # pattern, text, ${0} and the groups
    ("b+", "abbc", ["bb"]),
    ("(a|ab)(c|bcd)(d*)", "abcd", ["abcd", "a", "bcd", ""]),
    ("(.*)-(.*)", "a-b-c", ["a-b-c", "a-b", "c"]),
    ("^\\\\[(.*)\\\\] (.*)$", "[list] hello", ["[list] hello", "list", "hello"]),
    ("(x)?y", "ay", ["y", ""]),
    ("[[:digit:]]+([[:alpha:]])", "ab12c", ["12c", "c"]),
    ("[^[:space:]]+$", "one two", ["two"]),
    ("A(B)", "xab", ["ab", "b"]),
    ("(a){2}", "aaa", ["aa", "a"]),
    ("", "", None),
    ("a", "b", None),
    ("a$", "ab", None),
]


@pytest.mark.parametrize(("pattern", "text", "matches"), REGEX_CASES)
def test_regex_sets_match_variables(pattern: str, text: str, matches: Sequence[str] | None) -> None:
    if not pattern:
        assert script_problems('require ["regex"]; if header :regex "x" "" { }')
        return
    numbers = "|".join(f"${{{number}}}" for number in range(len(matches or ()) + 1))
    script = f"""require ["regex", "variables", "fileinto"];
        if string :regex "{text}" "{pattern}" {{ fileinto "{numbers}"; }}"""
    assert script_actions(script) == [f"into {'|'.join([*matches, ''])}" if matches else "keep"]


def test_regex_follows_comparator() -> None:
    assert is_test_true('header :regex "subject" "LONDON"', "regex")
    assert not is_test_true('header :regex :comparator "i;octet" "subject" "LONDON"', "regex")
    assert is_test_true('header :regex "x-number" ["^8$", "^7$"]', "regex")
    quoted = 'set :quoteregex "v" "a.b(c)"; if string :regex "xa.b(c)" "${v}$" { fileinto "yes"; }'
    assert script_actions(f'require ["regex", "variables", "fileinto"]; {quoted}') == ["into yes"]


@pytest.mark.parametrize("pattern", ["^((((a*)*)*)*)*$", "^(a|a)*$", "(a?){40}a{40}b", "(.*){9}x"])
def test_hostile_regex_ends_in_time(pattern: str) -> None:
    raw = SAMPLE_MESSAGE.replace(b"X-Number: 7", b"X-Number: " + b"a" * 10_000)
    script = f'require "regex"; if header :regex "x-number" "{pattern}" {{ discard; }}'
    try:
        assert script_actions(script, raw)
    except SieveRunError as error:
        assert error.message == "The script takes too long."  # noqa: PT017 - an error is allowed


def test_regex_from_variable_is_checked_at_run_time() -> None:
    script = 'set "v" "("; if header :regex "subject" "${v}" { }'
    with pytest.raises(SieveRunError, match="A regular expression is invalid: "):
        run_script(f'require ["regex", "variables"]; {script}')


NEW_MESSAGE = b"Message-ID: <1@x>\nSubject: x\n\nbody\n"


def checked_duplicate_keys(script: str, raw: bytes = NEW_MESSAGE) -> frozenset[str]:
    return run_script(f'require ["duplicate", "variables"]; {script}', raw).checked_duplicate_keys


def test_duplicate_test_tracks_message_id() -> None:
    script = 'require "duplicate"; if duplicate { discard; }'
    first_plan = run_script(script, NEW_MESSAGE)
    assert action_texts(first_plan) == ["keep"]
    (tracked,) = first_plan.tracked_duplicates
    assert first_plan.checked_duplicate_keys == {tracked.key}
    assert tracked.seconds == 7 * 86400
    second_plan = run_script(script, NEW_MESSAGE, seen={tracked.key})
    assert (action_texts(second_plan), second_plan.tracked_duplicates) == (["discard"], ())
    assert second_plan.checked_duplicate_keys == {tracked.key}
    # the message has no Message-ID
    assert run_script(script, SAMPLE_MESSAGE).checked_duplicate_keys == set()


def test_duplicate_key_depends_on_tags() -> None:
    key_sets = [
        checked_duplicate_keys(f"if duplicate {tags} {{ }}")
        for tags in ("", ':handle "a"', ':header "subject"', ':uniqueid "x"', ':uniqueid "y"')
    ]
    assert len({key for key_set in key_sets for key in key_set}) == 5
    assert checked_duplicate_keys('if duplicate :header "subject" { }') != checked_duplicate_keys(
        'if duplicate :uniqueid "x" { }'
    )
    assert checked_duplicate_keys('if duplicate :header "x-none" { }') == set()
    assert len(checked_duplicate_keys("if anyof (duplicate, duplicate) { }")) == 1
    seconds = (
        run_script('require "duplicate"; if duplicate :seconds 60 { }', NEW_MESSAGE)
        .tracked_duplicates[0]
        .seconds
    )
    assert seconds == 60


def test_duplicate_last_extends_tracking() -> None:
    (key,) = checked_duplicate_keys("if duplicate { }")
    script = 'require "duplicate"; if duplicate :last :seconds 60 { discard; }'
    plan = run_script(script, NEW_MESSAGE, seen={key})
    assert (action_texts(plan), [duplicate.seconds for duplicate in plan.tracked_duplicates]) == (
        ["discard"],
        [60],
    )


def test_duplicate_tests_per_run_are_limited() -> None:
    script = "".join(
        f'if duplicate :uniqueid "{n}" {{ }}' for n in range(limits.MAX_DUPLICATE_TESTS + 1)
    )
    with pytest.raises(SieveRunError, match="A script can test at most 16 IDs for duplicates"):
        checked_duplicate_keys(script)


ENVIRONMENT_CASES = [
    ('environment "name" "Merganser"', True),
    ('environment :matches "VERSION" "1.*"', True),
    ('environment :contains "x-none" ""', False),
    ('spamtest :value "ge" :comparator "i;ascii-numeric" "8"', True),
    ('spamtest "8"', True),
    ('spamtest :percent "80"', True),
    ('virustest :value "gt" "2"', True),
    ('virustest "3"', True),
]


@pytest.mark.parametrize(("test", "expected"), ENVIRONMENT_CASES)
def test_environment_spam_and_virus_tests(test: str, expected: bool) -> None:
    names = ("environment", "spamtestplus", "virustest", "relational", "comparator-i;ascii-numeric")
    options: dict[str, Any] = {"items": {"name": "Merganser", "version": "1.2"}}
    assert is_test_true(test, *names, spam=80.0, virus=3, **options) is expected


VENDOR_EXTENSION_CASES = [
    ('header :contains :comparator "vnd.merganser.plain" "subject" "GRÜSSE  AUS\tlondon "', True),
    ('header :is :comparator "vnd.merganser.plain" "x-folded" " Begins and ENDS"', True),
    ('header :is :comparator "vnd.merganser.plain" "x-folded" "begins"', False),
    ('body :text :contains :comparator "vnd.merganser.plain" "THE CAFÉ\r\nopens"', True),
    ('body :text :contains :comparator "vnd.merganser.plain" "cafe"', False),
    ("hasattachment", True),
]


@pytest.mark.parametrize(("test", "expected"), VENDOR_EXTENSION_CASES)
def test_vendor_extensions(test: str, expected: bool) -> None:
    names = ("comparator-vnd.merganser.plain", "vnd.merganser.attachments", "body")
    assert is_test_true(test, *names) is expected


@pytest.mark.parametrize("match_type", [":matches", ":regex", ':value "eq"', ':count "eq"'])
def test_vendor_comparator_supports_only_is_and_contains(match_type: str) -> None:
    names = '"comparator-vnd.merganser.plain", "regex", "relational"'
    test = f'header {match_type} :comparator "vnd.merganser.plain" "subject" "1"'
    (problem,) = script_problems(f"require [{names}]; if {test} {{ keep; }}")
    assert problem.endswith(" vnd.merganser.plain can only be used with :is and :contains.")


def test_image_in_multipart_related_is_no_attachment() -> None:
    html_part = b"--b\r\nContent-Type: text/html\r\n\r\n<img src=cid:a>\r\n"
    image_part = b"--b\r\nContent-Type: image/png\r\nContent-ID: <a>\r\n\r\nx\r\n--b--\r\n"
    for subtype, expected in ((b"related", False), (b"mixed", True)):
        raw = (
            b"Content-Type: multipart/"
            + subtype
            + b'; boundary="b"\r\n\r\n'
            + html_part
            + image_part
        )
        script = 'require "vnd.merganser.attachments"; if hasattachment { discard; }'
        assert (script_actions(script, raw) == ["discard"]) is expected


@pytest.mark.parametrize(
    ("percent", "score"), [(None, 0), (0, 1), (50, 5), (99.9, 9), (100, 10), (500, 10)]
)
def test_spam_score_is_mapped_to_range_of_spamtest(percent: float | None, score: int) -> None:
    assert is_test_true(f'spamtest "{score}"', "spamtest", spam=percent)


def test_spamtest_and_virustest_without_scan() -> None:
    for name in ("spamtest", "virustest"):
        assert is_test_true(f'{name} "0"', name)
        assert is_test_true(f'{name} :count "eq" "0"', name, "relational")


NOTIFY_REQUIRE = 'require ["enotify", "variables", "fileinto", "fcc", "mailbox", "imap4flags"];'


def run_notify(script: str) -> MailNotification:
    (notification, _) = run_script(NOTIFY_REQUIRE + script).actions
    assert isinstance(notification, MailNotification)
    return notification


def test_notify_action() -> None:
    uri = "mailto:a@b.cd,e@f.gh?subject=x%20y&Body=z&to=i%2Bj@k.lm&from=evil@x.yz&x-a=b"
    notification = run_notify(
        f'notify :importance "1" :from "me@x.yz" :options "a=b" :message "hi" "{uri}";'
    )
    assert notification == MailNotification(
        uri, ("a@b.cd", "e@f.gh", "i+j@k.lm"), (("subject", "x y"), ("x-a", "b")), "z", "hi", 1,
        "me@x.yz", ("a=b",),
    )  # fmt: skip
    assert run_notify('notify "MAILTO:a@b.cd";').importance == 2
    script = 'notify "mailto:a@b.cd"; notify :message "x" "mailto:A@b.cd,c@d.ef";'
    assert script_actions(NOTIFY_REQUIRE + script) == ["notify a@b.cd ", "notify c@d.ef x", "keep"]


def test_notify_methods() -> None:
    assert is_test_true('valid_notify_method ["mailto:a@b.cd", "mailto:c@d.ef?body=x"]', "enotify")
    for uri in ("xmpp:a@b.cd", "mailto:", "mailto:a", "mailto:a@b.cd?%zz=a", "mailto:a@b.cd?x"):
        assert not is_test_true(f'valid_notify_method ["mailto:a@b.cd", "{uri}"]', "enotify")
        assert script_problems(f'require "enotify"; notify "{uri}";')
        with pytest.raises(SieveRunError):
            run_script(f'{NOTIFY_REQUIRE} set "v" "{uri}"; notify "${{v}}";')
    capability_test = 'notify_method_capability "mailto:a@b.cd" "Online" ["yes", "MAYBE"]'
    assert is_test_true(capability_test, "enotify")
    assert not is_test_true(capability_test.replace("Online", "colour"), "enotify")
    script = 'set :encodeurl "v" "a b/\u00fc"; fileinto "${v}";'
    assert script_actions(NOTIFY_REQUIRE + script) == ["into a%20b%2F%C3%BC"]


def test_notification_count_is_limited() -> None:
    script = "".join(f'notify "mailto:a{n}@b.cd";' for n in range(limits.MAX_REDIRECTS + 1))
    with pytest.raises(SieveRunError, match="A script can notify at most 4 addresses"):
        run_script(NOTIFY_REQUIRE + script)


def test_fcc_of_notification_and_vacation_reply() -> None:
    notification = run_notify(
        'notify :fcc "Sent" :create :flags ["\\\\seen", "a b"] "mailto:a@b.cd";'
    )
    assert notification.fcc == FccCopy("Sent", ("\\Seen", "a", "b"), create_mailbox=True)
    script = """require ["vacation", "fcc", "special-use"];
        vacation :fcc "Sent" :specialuse "\\\\Sent" "x";"""
    (reply, _) = run_script(script, addresses={"bob@example.com"}).actions
    assert isinstance(reply, VacationReply)
    assert reply.fcc == FccCopy("Sent", special_use="\\Sent")


SPECIAL_USES = {"Spam": ["\\Junk"], "Sent": ["\\Sent", "\\Important"]}
SPECIAL_USE_CASES = [
    ('specialuse_exists "\\\\Junk"', True),
    ('specialuse_exists ["\\\\JUNK", "\\\\Important"]', True),
    ('specialuse_exists ["\\\\Junk", "\\\\Trash"]', False),
    ('specialuse_exists "Spam" "\\\\Junk"', True),
    ('specialuse_exists "Sent" ["\\\\Sent", "\\\\Junk"]', False),
    ('specialuse_exists "None" "\\\\Sent"', False),
]


@pytest.mark.parametrize(("test", "expected"), SPECIAL_USE_CASES)
def test_specialuse_exists(test: str, expected: bool) -> None:
    assert is_test_true(test, "special-use", special_uses=SPECIAL_USES) is expected


def test_fileinto_by_special_use() -> None:
    script = """require ["fileinto", "special-use", "mailbox"];
        fileinto :specialuse "\\\\Junk" :create "Spam";"""
    assert script_actions(script) == ["into Spam :create \\Junk"]


METADATA = {("INBOX", "/private/comment"): "Mine", ("", "/shared/admin"): "mailto:x@y.zz"}
METADATA_CASES = [
    ('metadata "inbox" "/private/Comment" "MINE"', True),
    ('metadata :contains "INBOX" "/private/comment" "x"', False),
    ('metadata :contains "INBOX" "/private/none" ""', False),
    ('metadata :contains "Sent" "/private/comment" ""', False),
    ('metadataexists "INBOX" "/private/comment"', True),
    ('metadataexists "INBOX" ["/private/comment", "/private/none"]', False),
    ('servermetadata :matches "/shared/admin" "mailto:*"', True),
    ('servermetadata "/private/comment" "Mine"', False),
    ('servermetadataexists ["/shared/admin"]', True),
]


@pytest.mark.parametrize(("test", "expected"), METADATA_CASES)
def test_metadata_tests(test: str, expected: bool) -> None:
    assert is_test_true(test, "mboxmetadata", "servermetadata", metadata=METADATA) is expected


INVALID_SCRIPTS = [
    ("date", 'if date "date" "century" "x" { }', "is not a date part: use one of year, "),
    (
        "date",
        'if date :zone "CET" "date" "year" "x" { }',
        '"CET" is not a time zone such as "+0100".',
    ),
    (
        "date",
        'if date :zone "+0100" :originalzone "date" "year" "x" { }',
        "The tag :originalzone conflicts with an earlier tag.",
    ),
    ("date", 'if currentdate :originalzone "year" "x" { }', "does not support :originalzone"),
    ("index", 'if header :last "a" "b" { }', ":last requires :index."),
    ("index", 'if header :index 0 "a" "b" { }', "begins with 1"),
    ("regex", 'if header :regex "a" "(" { }', "A regular expression is invalid: "),
    ("regex", 'if header :regex "a" ["b", "(?=a)"] { }', "A regular expression is invalid: "),
    ("regex", 'if header :regex "a" "[[:none:]]" { }', "A regular expression is invalid: "),
    (
        "duplicate",
        'if duplicate :header "a" :uniqueid "b" { }',
        "The tag :uniqueid conflicts with an earlier tag.",
    ),
    ("duplicate", 'if duplicate :header "a b" { }', "is not a header field name"),
    ("include", 'include "a/b";', "is not a script name."),
    ("include", 'include "";', "is not a script name."),
    ("include", 'include :personal :global "a";', "The tag :global conflicts with an earlier tag."),
    ("include", 'global "a";', 'require "variables"'),
    ("editheader", 'addheader "a b" "c";', "is not a header field name"),
    ("editheader", 'deleteheader :last "a";', ":last requires :index."),
    ("enotify", 'notify :importance "4" "mailto:a@b.cd";', ':importance must be "1", "2" or "3".'),
    ("enotify", 'notify :from "x" "mailto:a@b.cd";', "is not an email address."),
    ("enotify", 'notify :fcc "x" "mailto:a@b.cd";', 'require "fcc"'),
    ("fcc", 'keep :fcc "x";', "does not support :fcc"),
    ("spamtest", 'if spamtest :percent "1" { }', 'require "spamtestplus"'),
    ("special-use", 'if specialuse_exists "Junk" { }', "is not a special use such as "),
]


@pytest.mark.parametrize(("extension", "script", "problem"), INVALID_SCRIPTS)
def test_invalid_use_of_extension_has_problem(extension: str, script: str, problem: str) -> None:
    (message,) = script_problems(f'require "{extension}";\n{script}')
    assert message.startswith("2:")
    assert problem in message
