"""Spam verdicts by header score, sender rules and spam level."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import insert, text

from mail.mime import SpamHeaderField, facts_from_message_bytes
from mail.mime.spam_headers import MAX_FIELD_LENGTH, MAX_FIELDS_PER_END, SPAM_FIELD_NAMES
from mail.spam.sender_rules import (
    MAX_LABELS,
    SenderRuleMatch,
    checked_pattern,
    load_matching_rules,
    patterns_matching_sender,
)
from mail.spam.verdict import (
    HeaderScore,
    SpamFacts,
    SpamVerdict,
    VerdictReason,
    compute_verdict,
    header_score,
    spam_facts,
    verdict_after_filter,
)
from models.errors import InvalidInput
from models.runtime.environment import Environment
from models.runtime.options import Options
from models.spam.sender_rules import (
    PLATFORM_SCOPE,
    SenderAction,
    SenderRule,
    scope_of_tag,
    scope_of_user,
)
from models.store.columns import core_table
from tests.conftest import make_user, raw_message
from tests.support.operations.spam_operations import SenderRuleRecipient
from tests.support.stores.query_plans import record_query_plans

ALLOW, BLOCK = SenderAction.ALLOW, SenderAction.BLOCK
ALL_SPAM_HEADERS = Options().spam_headers
USER, TAG, DOMAIN, PLATFORM = range(4)


def rule_match(
    number: int, action: SenderAction, rank: int, *, by_header: bool = False
) -> SenderRuleMatch:
    return SenderRuleMatch(number, action, rank, by_header)


def spam_verdict(
    is_spam: bool, reason: VerdictReason, rule_id: int | None = None, score: int = 0
) -> SpamVerdict:
    return SpamVerdict(is_spam=is_spam, score=score, reason=reason, rule_id=rule_id)


BY_RULE, BY_LEVEL, BY_SCORE = VerdictReason.RULE, VerdictReason.LEVEL, VerdictReason.SCORE
VERDICT_CASES: list[
    tuple[int, int, list[SenderRuleMatch], SpamVerdict]
] = [  # score, level, rules, verdict
    # score and level
    (0, 50, [], spam_verdict(False, BY_SCORE)),
    (49, 50, [], spam_verdict(False, BY_SCORE, score=49)),
    (50, 50, [], spam_verdict(True, BY_SCORE, score=50)),
    (75, 76, [], spam_verdict(False, BY_SCORE, score=75)),
    (1, 1, [], spam_verdict(True, BY_SCORE, score=1)),
    (0, 1, [], spam_verdict(False, BY_SCORE)),
    (99, 99, [], spam_verdict(True, BY_SCORE, score=99)),
    # level 0 is always spam, level 100 never
    (0, 0, [], spam_verdict(True, BY_LEVEL)),
    (75, 0, [], spam_verdict(True, BY_LEVEL, score=75)),
    (100, 100, [], spam_verdict(False, BY_LEVEL, score=100)),
    (0, 100, [rule_match(1, BLOCK, USER)], spam_verdict(False, BY_LEVEL)),
    # a rule has precedence over the score and over level 0
    (100, 1, [rule_match(1, ALLOW, PLATFORM)], spam_verdict(False, BY_RULE, 1, 100)),
    (0, 0, [rule_match(1, ALLOW, PLATFORM)], spam_verdict(False, BY_RULE, 1)),
    (0, 99, [rule_match(1, BLOCK, PLATFORM)], spam_verdict(True, BY_RULE, 1)),
    # the most specific rule
    (
        0,
        50,
        [rule_match(1, ALLOW, USER), rule_match(2, BLOCK, TAG)],
        spam_verdict(False, BY_RULE, 1),
    ),
    (
        0,
        50,
        [rule_match(1, BLOCK, DOMAIN), rule_match(2, ALLOW, TAG)],
        spam_verdict(False, BY_RULE, 2),
    ),
    (
        0,
        50,
        [rule_match(1, BLOCK, PLATFORM), rule_match(2, ALLOW, DOMAIN)],
        spam_verdict(False, BY_RULE, 2),
    ),
    (
        0,
        50,
        [rule_match(1, ALLOW, PLATFORM), rule_match(2, BLOCK, USER)],
        spam_verdict(True, BY_RULE, 2),
    ),
    # BLOCK has precedence at the same rank
    (
        0,
        50,
        [rule_match(1, ALLOW, USER), rule_match(2, BLOCK, USER)],
        spam_verdict(True, BY_RULE, 2),
    ),
    (0, 50, [rule_match(3, BLOCK, TAG), rule_match(2, ALLOW, TAG)], spam_verdict(True, BY_RULE, 3)),
]


@pytest.mark.parametrize(("score", "level", "rules", "expected"), VERDICT_CASES)
def test_verdict_by_score_level_and_rules(
    score: int, level: int, rules: list[SenderRuleMatch], expected: SpamVerdict
) -> None:
    for order in (rules, rules[::-1]):
        assert compute_verdict(SpamFacts(HeaderScore(score)), order, level) == expected


def test_allow_rule_ignores_forged_sender() -> None:
    forged_facts = SpamFacts(HeaderScore(60), is_forged=True)
    spf_passed_facts = replace(forged_facts, spf_passed=True)
    by_header = rule_match(1, ALLOW, USER, by_header=True)
    by_envelope = rule_match(2, ALLOW, PLATFORM)
    for allow_rule in (by_header, by_envelope):
        assert compute_verdict(SpamFacts(HeaderScore(60)), [allow_rule], 50) == spam_verdict(
            False, BY_RULE, allow_rule.id, 60
        )
        assert compute_verdict(forged_facts, [allow_rule], 50) == spam_verdict(
            True, BY_SCORE, score=60
        )
    assert compute_verdict(spf_passed_facts, [by_header, by_envelope], 50) == spam_verdict(
        False, BY_RULE, 2, 60
    )
    assert compute_verdict(spf_passed_facts, [by_header], 50) == spam_verdict(
        True, BY_SCORE, score=60
    )
    for facts in (forged_facts, spf_passed_facts):
        assert compute_verdict(facts, [rule_match(3, BLOCK, USER, by_header=True)], 90).is_spam


@pytest.mark.parametrize(
    ("sender", "results", "forged", "spf_passed"),
    [
        ("a@b.example", None, False, False),
        ("a@b.example", {"dmarc": "pass", "spf": "b.example"}, False, True),
        ("a@B.example", {"dmarc": "fail", "spf": "b.Example"}, True, True),
        ("a@b.example", {"dmarc": "fail", "spf": "mx.b.example"}, True, False),
        ("a@b.example", {"dmarc": "fail", "spf": None}, True, False),
        ("a@bücher.example", {"dmarc": None, "spf": "xn--bcher-kva.example"}, False, True),
        ("", {"dmarc": "none", "spf": "mx.b.example"}, False, False),
    ],
)
def test_authentication_results_become_spam_facts(
    sender: str, results: dict[str, Any] | None, forged: bool, spf_passed: bool
) -> None:
    assert spam_facts([], ALL_SPAM_HEADERS, sender, results) == SpamFacts(
        HeaderScore(), forged, spf_passed
    )


def test_filter_overrules_verdict_except_at_level_100() -> None:
    blocked = compute_verdict(SpamFacts(), [rule_match(1, BLOCK, USER)], 50)
    assert verdict_after_filter(blocked, None) == blocked
    assert verdict_after_filter(blocked, filter_spam=False) == spam_verdict(
        False, VerdictReason.FILTER
    )
    always_spam = compute_verdict(SpamFacts(), [], 0)
    assert verdict_after_filter(always_spam, filter_spam=False) == spam_verdict(
        False, VerdictReason.FILTER
    )
    never_spam = compute_verdict(SpamFacts(HeaderScore(75)), [rule_match(1, BLOCK, USER)], 100)
    assert verdict_after_filter(never_spam, filter_spam=True) == never_spam


HEADER_SCORES = [  # a field, and the score it gives
    ("X-Rspamd-Action: reject", 75),
    ("X-Rspamd-Action: soft reject", 50),
    ("X-Rspamd-Action: Rewrite  Subject", 50),
    ("X-Rspamd-Action: greylist", 50),
    ("X-Rspamd-Action: add header", 25),
    ("X-Rspamd-Action: no action", 0),
    ("X-Rspamd-Action: something new", 0),
    ("X-Spamd-Result: default: True [20.00 / 15.00];\r\n\tGTUBE(20)[]", 100),
    ("X-Spamd-Result: default: False [15.00 / 15.00]", 75),
    ("X-Spamd-Result: default: False [6.00 / 15.00]; X(1)[score=99]", 30),
    ("X-Spamd-Result: default: False [-3.10 / 15.00]", 0),
    ("X-Spamd-Result: default: True [3.00 / 15.00]", 50),
    ("X-Spamd-Result: default: False [3.00 / 0]", 0),
    ("X-Spam-Status: Yes, score=7.5 required=5.0 tests=BAYES_99", 75),
    ("X-Spam-Status: Yes, hits=5.0\r\n\trequired=5.0", 50),
    ("X-Spam-Status: No, score=4.99 required=5.0", 49),
    ("X-Spam-Status: No, score=-1.2 required=5.0", 0),
    ("X-Spam-Status: Yes", 50),
    ("X-Spam-Status: Yes, score=2 required=8", 50),
    ("X-Spam-Status: No, score=3 required=-1", 30),
    ("X-Spam-Status: No, score=5.50", 49),
    ("X-Spam-Flag: YES", 50),
    ("X-Spam-Flag: no", 0),
    ("X-Spam: Yes", 50),
    ("X-Spam-Level: ****", 40),
    ("X-Spam-Level: " + "*" * 150, 100),
    ("X-Spam-Score: 7.2 (+++++++)", 72),
    ("X-Spam-Score: +3", 30),
    ("X-Spam-Score: 3.0 / 10", 15),
    ("X-Spam-Score: -99", 0),
    ("X-Spam-Score: 3 / 0", 30),
]


def parse_header_score(
    header: str, trusted_names: tuple[str, ...] = ALL_SPAM_HEADERS
) -> HeaderScore:
    raw = f"{header}\r\nFrom: a@b.example\r\nSubject: x\r\n\r\nX-Spam-Flag: YES\r\n".encode()
    return header_score(facts_from_message_bytes(raw).spam_headers, trusted_names)


@pytest.mark.parametrize(("header", "value"), HEADER_SCORES)
def test_spam_header_field_gives_score(header: str, value: int) -> None:
    assert parse_header_score(header) == HeaderScore(value, header.partition(":")[0].lower())


@pytest.mark.parametrize(
    "header", ["X-Other: YES", "X-Spam-Score: high", "X-Spam-Level: none", "X-Spamd-Result: [1/2]"]
)
def test_unknown_field_or_value_gives_no_score(header: str) -> None:
    assert parse_header_score(header) == HeaderScore(0, None)


def test_highest_score_of_several_fields_counts() -> None:
    spam_fields = "X-Spam-Flag: YES\r\nX-Spam-Score: 6.1"
    ham_fields = "X-Spam-Flag: NO\r\nX-Spam-Score: -99\r\nX-Rspamd-Action: no action"
    for header in (f"{spam_fields}\r\n{ham_fields}", f"{ham_fields}\r\n{spam_fields}"):
        assert parse_header_score(header) == HeaderScore(61, "x-spam-score")
    many_ham_fields = "\r\n".join(["X-Spam-Score: 0"] * 10 * MAX_FIELDS_PER_END)
    for header in (f"{spam_fields}\r\n{many_ham_fields}", f"{many_ham_fields}\r\n{spam_fields}"):
        assert parse_header_score(header) == HeaderScore(61, "x-spam-score")


@pytest.mark.parametrize(
    ("results", "flag", "score"),
    [
        ({"policy": "reject"}, "X-Spam-Flag: YES", HeaderScore(75, "authentication-results")),
        ({"policy": "quarantine"}, "X-Spam-Flag: NO", HeaderScore(50, "authentication-results")),
        ({"policy": "quarantine"}, "X-Rspamd-Action: reject", HeaderScore(75, "x-rspamd-action")),
        ({"policy": "none"}, "X-Spam-Flag: NO", HeaderScore(0, "x-spam-flag")),
        ({"policy": None}, "X: y", HeaderScore()),
        ({}, "X: y", HeaderScore()),
    ],
)
def test_dmarc_policy_of_forged_domain_gives_score(
    results: dict[str, Any], flag: str, score: HeaderScore
) -> None:
    fields = facts_from_message_bytes(f"{flag}\r\n\r\n".encode()).spam_headers
    assert spam_facts(fields, ALL_SPAM_HEADERS, "", {"dmarc": "fail", **results}) == SpamFacts(
        score, is_forged=True
    )
    sealed_results = {"dmarc": "fail", "policy": "none", "sealer": "list.example"}
    assert not spam_facts(fields, ALL_SPAM_HEADERS, "", sealed_results).is_forged


def test_only_configured_fields_are_trusted() -> None:
    header = "X-Spam-Flag: YES\r\nX-Rspamd-Action: reject"
    assert parse_header_score(header, ("x-spam-FLAG",)) == HeaderScore(50, "x-spam-flag")
    assert parse_header_score(header, ()) == HeaderScore()
    assert tuple(name.lower() for name in ALL_SPAM_HEADERS) == SPAM_FIELD_NAMES


@given(st.sampled_from(SPAM_FIELD_NAMES), st.text(max_size=MAX_FIELD_LENGTH))
def test_random_field_value_gives_score_in_range(name: str, text: str) -> None:
    assert 0 <= header_score([SpamHeaderField(name, text)], ALL_SPAM_HEADERS).value <= 100


@pytest.mark.parametrize(
    ("pattern", "stored"),
    [
        ("Shop.Example", "shop.example"),
        ("*@shop.example", "shop.example"),
        ("@shop.example", "shop.example"),
        (" shop.example. ", "shop.example"),
        ("XN--BCHER-KVA.example", "bücher.example"),
        ("*.shop.example", "*.shop.example"),
        ("*@*.Shop.example", "*.shop.example"),
        ("News.Letter+X@Shop.example", "news.letter+x@shop.example"),
        ("*.example", "*.example"),
        (f"*.{'a.' * (MAX_LABELS - 1)}example", f"*.{'a.' * (MAX_LABELS - 1)}example"),
    ],
)
def test_pattern_is_normalized(pattern: str, stored: str) -> None:
    assert checked_pattern(pattern, path=["patterns"]) == stored
    assert checked_pattern(stored, path=["patterns"]) == stored


@pytest.mark.parametrize(
    ("pattern", "constraint"),
    [
        ("", "PATTERN"),
        ("*", "PATTERN"),
        ("@", "PATTERN"),
        ("*@", "PATTERN"),
        ("*.", "PATTERN"),
        ("*.*.example", "PATTERN"),
        ("shop.*", "PATTERN"),
        ("news*@shop.example", "PATTERN"),
        ("a@b@shop.example", "PATTERN"),
        ("a b@shop.example", "PATTERN"),
        ("news@*.shop.example", "PATTERN"),
        ("shop..example", "PATTERN"),
        ("shop\0.example", "PATTERN"),
        ("x" * 70 + ".example", "PATTERN"),
        ("x" * 65 + "@shop.example", "PATTERN"),
        (f"*.{'a.' * MAX_LABELS}example", "MAX"),
    ],
)
def test_invalid_pattern_is_refused(pattern: str, constraint: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        checked_pattern(pattern, path=["patterns"], index=3)
    error = raised.value
    assert (error.constraint, error.path, error.index) == (constraint, ["patterns"], 3)


MATCHING_PATTERNS = {  # a sender, and the patterns that match it
    "News@Shop.example": {"news@shop.example", "shop.example", "*.example"},
    "news+x@eu.shop.example": {
        "news+x@eu.shop.example",
        "news@eu.shop.example",
        "eu.shop.example",
        "*.shop.example",
        "*.example",
    },
    "a.b@xn--bcher-kva.example": {"a.b@bücher.example", "bücher.example", "*.example"},
    "+x@d": {"+x@d", "d"},
    "": set[str](),
    "nobody": set[str](),
    "@d": set[str](),
    "a@": set[str](),
    "a\0@d": set[str](),
    "a\ud800@d": set[str](),
    f"{'x' * 400}@d": set[str](),
}


@pytest.mark.parametrize("sender", MATCHING_PATTERNS)
def test_patterns_matching_sender(sender: str) -> None:
    assert set(patterns_matching_sender(sender)) == MATCHING_PATTERNS[sender]


@given(
    st.text(max_size=400) | st.from_regex(r"[a-z+.]{1,9}@([a-z-]{1,5}\.){0,140}x", fullmatch=True)
)
def test_pattern_count_of_any_sender_is_limited(sender: str) -> None:
    patterns = patterns_matching_sender(sender)
    assert len(patterns) <= MAX_LABELS + 3
    assert len(set(patterns)) == len(patterns)


async def insert_rules(
    environment: Environment, place: str, action: SenderAction, *patterns: str
) -> list[int]:
    """Insert sender rules without validation."""
    rows: list[dict[str, Any]] = [
        {
            "id": environment.new_id(), "scope": place, "pattern": pattern, "action": action,
            "created_at": environment.now(),
        }
        for pattern in patterns
    ]  # fmt: skip
    async with environment.write_session() as session:
        await (await session.connection()).execute(insert(core_table(SenderRule)), rows)
    return [row["id"] for row in rows]


async def test_rules_of_all_recipients_are_loaded_by_one_statement(
    environment: Environment, statements: list[str]
) -> None:
    ada, bob = await make_user(environment, "ada"), await make_user(environment, "bob")
    (user_rule,) = await insert_rules(environment, scope_of_user(ada.id), BLOCK, "shop.example")
    (tag_rule,) = await insert_rules(
        environment, scope_of_tag("straße".casefold()), ALLOW, "news@shop.example"
    )
    (domain_rule,) = await insert_rules(environment, f"domain:{ada.domain_id}", BLOCK, "*.example")
    (platform_rule,) = await insert_rules(environment, PLATFORM_SCOPE, ALLOW, "far.example")
    await insert_rules(
        environment, scope_of_user(bob.id), BLOCK, "other.example", "news@other.example"
    )
    recipients = [
        SenderRuleRecipient(ada.id, ada.domain_id),
        SenderRuleRecipient(bob.id, None, ("STRASSE", "x")),
        *(SenderRuleRecipient(n, ada.domain_id) for n in range(1, 19)),
    ]
    del statements[:]
    matches = await load_matching_rules(
        environment, recipients, "news+7@shop.example", "ceo@far.example"
    )
    assert len(statements) == 1
    assert matches[0] == [
        SenderRuleMatch(user_rule, BLOCK, USER, matches_only_header=False),
        SenderRuleMatch(domain_rule, BLOCK, DOMAIN, matches_only_header=False),
        SenderRuleMatch(platform_rule, ALLOW, PLATFORM, matches_only_header=True),
    ]
    assert matches[1] == [
        SenderRuleMatch(tag_rule, ALLOW, TAG, matches_only_header=False),
        SenderRuleMatch(platform_rule, ALLOW, PLATFORM, matches_only_header=True),
    ]
    assert matches[2:] == [[matches[0][1], matches[0][2]]] * 18
    del statements[:]
    assert await load_matching_rules(environment, recipients[:1], "x@none.test", "") == [[]]
    assert len(statements) == 1
    assert await load_matching_rules(environment, recipients, "", "no address") == [[]] * 20
    assert await load_matching_rules(environment, [], "a@b.example", "a@b.example") == []
    assert len(statements) == 1


async def test_rule_query_uses_index(environment: Environment) -> None:
    ada = await make_user(environment, "ada")
    for n in range(40):
        patterns = [f"{m}.shop.example" for m in range(50)]
        await insert_rules(
            environment, scope_of_user(1000 + n), BLOCK, *patterns, "shop.example", "*.example"
        )
    await insert_rules(environment, scope_of_user(ada.id), ALLOW, "shop.example")
    if environment.database.dialect == "postgresql":
        async with environment.database.engine.begin() as connection:
            await connection.execute(text("ANALYZE sender_rules"))
    recipients = [
        SenderRuleRecipient(ada.id, 5, ["vip"]),
        *(SenderRuleRecipient(1000 + n, 5) for n in range(20)),
    ]
    with record_query_plans(environment) as plans:
        query = load_matching_rules(
            environment, recipients, "news@eu.shop.example", "a@b.far.example"
        )
        plan = await plans.explain_select(query, "sender_rules")
    assert "uq_sender_rules_scope" in plan or "ix_sender_rules_pattern" in plan, plan
    assert "SCAN sender_rules" not in plan, plan
    assert "Seq Scan on sender_rules" not in plan, plan
    uses_both_columns = "scope=? AND pattern=?" in plan or "(scope)::text = ANY" in plan
    assert uses_both_columns, plan


async def test_verdict_of_message_for_recipient(environment: Environment) -> None:
    ada = await make_user(environment, "ada")
    facts = facts_from_message_bytes(raw_message("Offer", X_Spam_Flag="YES", X_Spam_Score="6.5"))
    message_facts = spam_facts(
        facts.spam_headers, environment.options.spam_headers, "bounce@lists.test"
    )
    recipient = SenderRuleRecipient(ada.id, ada.domain_id, ada.tags)

    async def compute() -> SpamVerdict:
        (rules,) = await load_matching_rules(
            environment, [recipient], "bounce@lists.test", facts.from_[0].address
        )
        return compute_verdict(message_facts, rules, ada.spam_level)

    assert await compute() == spam_verdict(True, BY_SCORE, score=65)
    (allow_rule,) = await insert_rules(
        environment, scope_of_user(ada.id), ALLOW, "carol@example.com"
    )
    assert await compute() == spam_verdict(False, BY_RULE, allow_rule, 65)
    (block_rule,) = await insert_rules(environment, scope_of_user(ada.id), BLOCK, "lists.test")
    assert await compute() == spam_verdict(True, BY_RULE, block_rule, 65)
