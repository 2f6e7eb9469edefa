"""Random filters that are converted to Sieve and back, and random scripts."""

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from mail import sieve
from mail.filters import filter_compiler
from mail.filters.filter_compiler import GROUP_NAMES, ScriptNames
from mail.filters.sieve_import import filters_and_problems_from_sieve_script
from mail.sieve import SieveError
from tests.support.mail.imported_filters import DAY, plain_action
from tests.support.mail.random_sieve_scripts import COMPILING_SCRIPTS, TOKEN_SEQUENCES

MAILBOX_PATHS = {1: "Lists", 2: "Lists/A b", 3: "Größe"}
nonblank_texts = st.text(
    st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1, max_size=20
).filter(lambda text: bool(text.strip()))
header_names = st.from_regex(r"X-[A-Za-z0-9-]{1,10}", fullmatch=True)
header_tests = st.builds(
    lambda key, value: {"key": key, "value": value}, header_names, st.none() | nonblank_texts
)
regex_tests = st.builds(
    lambda key, pattern: {"key": key, "pattern": pattern},
    st.none() | header_names,
    st.sampled_from(["^a.*b$", "[0-9]+", "x|y", r"\$\.\\"]),
)
field_tests = {
    **dict.fromkeys(("from", "to", "subject", "listId", "text"), nonblank_texts),
    "hasAttachment": st.booleans(),
    "larger": st.integers(1, 1 << 40),
    "smaller": st.integers(1, 1 << 40),
    "header": header_tests,
    "regex": regex_tests,
}
leaf_queries: Any = st.fixed_dictionaries({}, optional=field_tests)


def has_own_negation(query: Any) -> bool:
    """True if `not` of the query is a field test, too."""
    return list(query) == ["hasAttachment"]


def grouped_queries(inner_queries: Any) -> Any:
    return st.fixed_dictionaries(
        {},
        optional={
            **field_tests,
            "any": st.lists(inner_queries, min_size=2, max_size=3),
            "not": st.lists(inner_queries.filter(lambda query: not has_own_negation(query)),
                            min_size=1,
                              max_size=2),
        },
    )  # fmt: skip


queries = st.recursive(leaf_queries, grouped_queries, max_leaves=8)
label_lists = st.lists(st.sampled_from(["news", "größe", "$Label1", "a.b", "c", "d"]), unique=True,
                    min_size=2, max_size=6)  # fmt: skip
reply_texts = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=30)
replies = st.fixed_dictionaries(
    {
        "subject": reply_texts.map(lambda text: text.strip()),
        "text": reply_texts,
        "html": reply_texts,
    }
).filter(lambda reply: bool(reply["text"] or reply["html"]))


@st.composite
def actions(draw: Any) -> dict[str, Any]:
    action: dict[str, Any] = {}
    for name in ("seen", "flag"):
        if (value := draw(st.sampled_from([None, True, False]))) is not None:
            action[name] = value
    if draw(st.booleans()):
        label_list = draw(label_lists)
        action |= {
            "keywords": label_list[: len(label_list) // 2],
            "removeKeywords": label_list[len(label_list) // 2 :],
        }
    destination = draw(st.sampled_from([{}, {"delete": True}, {"spam": True}, {"mailbox": 1}]))
    action |= destination
    if "delete" not in destination and draw(st.booleans()):
        action["copyTo"] = draw(st.sampled_from([[2], [3, 2]]))
    if draw(st.booleans()):
        action["forwardTo"] = draw(
            st.sampled_from([["a@b.example"], ["a@b.example", "c@d.example"]])
        )
    if draw(st.booleans()):
        action["reply"] = draw(replies)
    if draw(st.booleans()):
        action["stop"] = True
    return action


@settings(max_examples=150)
@given(queries, actions().filter(bool))
def test_filter_to_sieve_and_back_is_unchanged(query: Any, action: Any) -> None:
    script = sieve.print_script(
        filter_compiler.script_from_filter(1, query, action, ScriptNames(MAILBOX_PATHS, 7200))
    )
    (filter_,) = (
        imported := filters_and_problems_from_sieve_script(
            script, reply_interval=7200, max_filters=1
        )
    ).filters
    assert (imported.errors, imported.warnings) == ([], [])
    mailbox_ids = {path: key for key, path in MAILBOX_PATHS.items()}
    imported_action = plain_action(filter_.action)
    if "mailbox" in imported_action:
        imported_action["mailbox"] = mailbox_ids[imported_action["mailbox"]]
    if "copyTo" in imported_action:
        imported_action["copyTo"] = [mailbox_ids[path] for path in imported_action["copyTo"]]
    assert (filter_.query, imported_action) == (query, action)


@settings(max_examples=100)
@given(
    st.recursive(
        leaf_queries,
        lambda inner: st.fixed_dictionaries(
            {name: st.lists(inner, min_size=1, max_size=2) for name in GROUP_NAMES}
        ),
        max_leaves=8,
    )
)
@example({"all": [{"all": [{}], "any": [{}, {}], "not": [{}]}], "any": [{}, {"from": "0"}]})
def test_second_round_trip_changes_no_query(query: Any) -> None:
    names = ScriptNames({})
    script = sieve.print_script(
        filter_compiler.script_from_filter(1, query, {"delete": True}, names)
    )
    (imported,) = filters_and_problems_from_sieve_script(
        script, reply_interval=DAY, max_filters=1
    ).filters
    second_script = sieve.print_script(
        filter_compiler.script_from_filter(1, imported.query, {"delete": True}, names)
    )
    (imported_again,) = filters_and_problems_from_sieve_script(
        second_script, reply_interval=DAY, max_filters=1
    ).filters
    assert imported_again.query == imported.query


@settings(max_examples=200)
@given(COMPILING_SCRIPTS.map(sieve.print_script) | TOKEN_SEQUENCES)
def test_any_script_is_imported_or_refused(text: str) -> None:
    try:
        imported = filters_and_problems_from_sieve_script(text, reply_interval=DAY, max_filters=400)
    except SieveError:
        return
    if imported.errors:
        return
    for filter_ in imported.filters:
        action = {**filter_.action, "mailbox": 1, "copyTo": [2]}
        script = sieve.print_script(
            filter_compiler.script_from_filter(1, filter_.query, action, ScriptNames(MAILBOX_PATHS))
        )
        assert sieve.compile_script(script)
