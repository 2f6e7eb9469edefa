"""Compile filters to Sieve.

A query is a mapping of conditions that must all hold; an action is a mapping of effects. Both
use the names of the API and hold only the fields that are set:

    {"from": "ada", "any": [{"subject": "a"}, {"larger": 1000}], "not": [{"header": {"key": "X"}}]}
    {"mailbox": 7, "keywords": ["news"], "seen": True}

A search text is one more condition. It is stored with the query it was parsed to:

    {"query": {"text": "subject:a OR larger:1k", "tests": {"any": [{"subject": "a"}, …]}}}
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mail.sieve.execution.comparators import PLAIN
from mail.sieve.syntax.syntax_tree import (
    Argument,
    CommandNode,
    NumberNode,
    StringNode,
    TagNode,
    TestNode,
    Tree,
    string_list,
)

FilterForm = Mapping[str, Any]

GROUP_NAMES = ("all", "any", "not")
OTHER_ACTION_PREFIX = "Not part of the Sieve script:"  # of comments; an import recognizes it
MAX_DEPTH = 5  # levels of nested queries
MAX_VACATION_SECONDS = 90 * 86_400  # longest time that Sieve remembers a sender
_ATTACHMENT_EXTENSION = "vnd.merganser.attachments"
HEADER_FIELDS = {"from": ("from", "sender"), "to": ("to", "cc"), "subject": ("subject",)}
HEADER_FIELDS["listId"] = ("list-id",)


def sieve_test_from_query(query: FilterForm) -> TestNode:
    """Return the query as a Sieve test."""
    return _all_of(list(_tests_of_query(query)))


def _tests_of_query(query: FilterForm) -> Iterator[TestNode]:
    """Yield a Sieve test for each condition of a query."""
    for name, fields in HEADER_FIELDS.items():
        if name in query:
            yield _contains_test(TestNode("header"), string_list(*fields), query[name])
    if "text" in query:
        yield _contains_test(TestNode("body", (TagNode("text"),)), None, query["text"])
    if "hasAttachment" in query:
        test = TestNode("hasattachment")
        yield test if query["hasAttachment"] else TestNode("not", tests=(test,))
    for name, tag in (("larger", "over"), ("smaller", "under")):
        if name in query:
            yield TestNode("size", (TagNode(tag), NumberNode(query[name])))
    if header := query.get("header"):
        if header.get("value") is None:
            yield TestNode("exists", (StringNode(header["key"]),))
        else:
            yield _contains_test(TestNode("header"), StringNode(header["key"]), header["value"])
    if regex := query.get("regex"):
        yield _regex_test(regex)
    yield from _tests_of_groups(query)


def _tests_of_groups(query: FilterForm) -> Iterator[TestNode]:
    """Yield the Sieve tests of the nested queries. All queries of `any` are one test."""
    for group_query in required_queries(query):
        yield sieve_test_from_query(group_query)
    if alternatives := query.get("any"):
        yield _any_of([sieve_test_from_query(group_test) for group_test in alternatives])
    for group_query in query.get("not", ()):
        yield TestNode("not", tests=(sieve_test_from_query(group_query),))


def _contains_test(test: TestNode, target: Argument | None, value: str) -> TestNode:
    """Return a `:contains` test that ignores case."""
    match_tags = (TagNode("contains"), TagNode("comparator"), StringNode(PLAIN))
    targets = (target,) if target is not None else ()
    return TestNode(test.name, (*test.arguments, *match_tags, *targets, StringNode(value)))


def _regex_test(regex_query: FilterForm) -> TestNode:
    """Return a `:regex` test of a header field or of the text."""
    match_tag, pattern = TagNode("regex"), StringNode(regex_query["pattern"])
    if regex_query.get("key") is None:
        return TestNode("body", (TagNode("text"), match_tag, pattern))
    return TestNode("header", (match_tag, StringNode(regex_query["key"]), pattern))


def _all_of(tests: Sequence[TestNode]) -> TestNode:
    if not tests:
        return TestNode("true")
    return tests[0] if len(tests) == 1 else TestNode("allof", tests=tuple(tests))


def _any_of(tests: Sequence[TestNode]) -> TestNode:
    return tests[0] if len(tests) == 1 else TestNode("anyof", tests=tuple(tests))


def required_queries(query: FilterForm) -> list[FilterForm]:
    """Return the nested queries that must hold: the parsed search text and `all`."""
    text = query.get("query")
    return [*([text["tests"]] if text else []), *query.get("all", ())]


def nested_queries(query: FilterForm) -> list[FilterForm]:
    """Return all nested queries of a query."""
    return [*required_queries(query), *query.get("any", ()), *query.get("not", ())]


def nested_query_levels(query: FilterForm) -> int:
    """Return the levels of nested queries in a query; 0 if there are none."""
    return max((1 + nested_query_levels(query) for query in nested_queries(query)), default=0)


def test_count(query: FilterForm) -> int:
    """Return the number of conditions and queries in a query."""
    return 1 + len(query) + sum(map(test_count, nested_queries(query)))


@dataclass(frozen=True, slots=True)
class ScriptNames:
    """The mailbox paths and the reply interval that a script is written with."""

    mailbox_paths: Mapping[int, str]  # paths by ID; INBOX replaces a missing mailbox
    reply_interval: int = 86_400  # seconds between two replies to a sender


def script_from_filter(
    filter_id: int, query: FilterForm, action: FilterForm, script_names: ScriptNames
) -> Tree:
    """Return a filter as a script. `comments_on_actions_without_sieve` has the rest."""
    test = sieve_test_from_query(query)
    commands = tuple(_commands_of_action(filter_id, action, script_names))
    needed = sorted(
        {
            *extensions_of_test(test),
            *(extension for command in commands for extension in _extensions_of_command(command)),
        }
    )
    inner = commands if test.name == "true" else (CommandNode("if", (), (test,), commands),)
    return (CommandNode("require", (string_list(*needed),)), *inner) if needed else inner


def comments_on_actions_without_sieve(action: FilterForm) -> list[str]:
    """Return a comment line for each action that Sieve can't express: URL targets, the webhook."""
    texts = [
        f"the message is redirected to {target}"
        for target in action.get("forwardTo", ())
        if "://" in target
    ]
    texts += ["a webhook is called"] if "webhook" in action else []
    return [f"# {OTHER_ACTION_PREFIX} {text}\n" for text in texts]


def _commands_of_action(
    filter_id: int, action: FilterForm, script_names: ScriptNames
) -> Iterator[CommandNode]:
    """Yield the commands of an action."""
    flags = {"\\Seen": action.get("seen"), "\\Flagged": action.get("flag")}
    added, removed = list(action.get("keywords", ())), list(action.get("removeKeywords", ()))
    on = [*(flag for flag, action in flags.items() if action), *added]
    off = [*(flag for flag, action in flags.items() if action is False), *removed]
    if on:
        yield CommandNode("addflag", (string_list(*on),))
    if off:
        yield CommandNode("removeflag", (string_list(*off),))
    for target in action.get("forwardTo", ()):
        if "://" not in target:
            yield CommandNode("redirect", (TagNode("copy"), StringNode(target)))
    if reply := action.get("reply"):
        yield _vacation_command(filter_id, reply, script_names)
    for mailbox in () if action.get("delete") else action.get("copyTo", ()):
        yield CommandNode(
            "fileinto",
            (TagNode("copy"), StringNode(script_names.mailbox_paths.get(mailbox, "INBOX"))),
        )
    yield from _storage_commands(action, script_names)
    if action.get("stop"):
        yield CommandNode("stop")


def _storage_commands(action: FilterForm, script_names: ScriptNames) -> Iterator[CommandNode]:
    """Yield the command that stores or discards the message."""
    if action.get("delete"):
        yield CommandNode("discard")
    elif action.get("spam"):
        yield CommandNode(
            "fileinto", (TagNode("specialuse"), StringNode("\\Junk"), StringNode("INBOX"))
        )
    elif "mailbox" in action:
        yield CommandNode(
            "fileinto", (StringNode(script_names.mailbox_paths.get(action["mailbox"], "INBOX")),)
        )
    elif action.get("spam") is False:
        yield CommandNode("fileinto", (StringNode("INBOX"),))


def _vacation_command(
    filter_id: int, reply_form: FilterForm, script_names: ScriptNames
) -> CommandNode:
    """Return the `vacation` command of a reply."""
    seconds = min(script_names.reply_interval, MAX_VACATION_SECONDS)
    arguments: list[Argument] = [
        TagNode("seconds"),
        NumberNode(seconds),
        TagNode("handle"),
        StringNode(vacation_handle(filter_id)),
    ]
    if reply_form["subject"]:
        arguments += [TagNode("subject"), StringNode(reply_form["subject"])]
    if reply_form["html"]:
        arguments.append(TagNode("mime"))
    return CommandNode(
        "vacation",
        (
            *arguments,
            StringNode(reply_body_of_text_and_html(reply_form["text"], reply_form["html"])),
        ),
    )


def vacation_handle(filter_id: int) -> str:
    """Return the `:handle` under which the senders that a filter replied to are remembered."""
    return f"filter:{filter_id}"


def reply_body_of_text_and_html(plain_text: str, html_text: str) -> str:
    """Return the body of a reply: the text, or a MIME entity if there is HTML."""
    if not html_text:
        return plain_text
    if not plain_text:
        return f"{_part_header('html')}{html_text}"
    border = "=_alternative"
    while border in plain_text or border in html_text:
        border += "="
    parts = "".join(
        f"--{border}\r\n{_part_header(kind)}{body}\r\n"
        for kind, body in (("plain", plain_text), ("html", html_text))
    )
    return (
        f'Content-Type: multipart/alternative; boundary="{border}"\r\n\r\n{parts}--{border}--\r\n'
    )


def _part_header(text_subtype: str) -> str:
    """Return the MIME header of a text part."""
    encoding = "Content-Transfer-Encoding: 8bit"
    return f"Content-Type: text/{text_subtype}; charset=utf-8\r\n{encoding}\r\n\r\n"


_EXTENSION_BY_COMMAND = {
    "addflag": "imap4flags",
    "fileinto": "fileinto",
    "removeflag": "imap4flags",
    "vacation": "vacation-seconds",
}
_EXTENSION_BY_TAG = {"copy": "copy", "specialuse": "special-use"}
_EXTENSION_BY_TEST = {"body": "body", "hasattachment": _ATTACHMENT_EXTENSION}


def _extensions_of_command(command: CommandNode) -> Iterator[str]:
    """Yield the Sieve extensions of a command and its tags, not those of its tests and block."""
    if command.name in _EXTENSION_BY_COMMAND:
        yield _EXTENSION_BY_COMMAND[command.name]
    for argument in command.arguments:
        if isinstance(argument, TagNode) and argument.name in _EXTENSION_BY_TAG:
            yield _EXTENSION_BY_TAG[argument.name]


def extensions_of_test(test: TestNode) -> Iterator[str]:
    """Yield the Sieve extensions of a test and the tests in it."""
    if test.name in _EXTENSION_BY_TEST:
        yield _EXTENSION_BY_TEST[test.name]
    tags = {argument.name for argument in test.arguments if isinstance(argument, TagNode)}
    if "comparator" in tags:
        yield f"comparator-{PLAIN}"
    if "regex" in tags:
        yield "regex"
    for inner in test.tests:
        yield from extensions_of_test(inner)
