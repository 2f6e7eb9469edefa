"""What is spam: what filters before us found, rules about senders, and how strict one is."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from sqlalchemy import insert, text

from mail.mime import SpamHeaderField, read_facts
from mail.mime.spam_headers import MAX_FIELD_LENGTH, MAX_FIELDS_PER_END, SPAM_FIELD_NAMES
from mail.spam.sender_rules import (
    MAX_LABELS,
    SenderRuleMatch,
    checked_pattern,
    load_matching_rules,
    patterns_matching,
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
    PLATFORM_PLACE,
    SenderAction,
    SenderRule,
    place_of_tag,
    place_of_user,
)
from models.store.columns import core_table
from tests.conftest import make_user, raw_message
from tests.support.operations.spam_operations import SenderRuleRecipient
from tests.support.stores.query_plans import explained

ALLOW, BLOCK = SenderAction.ALLOW, SenderAction.BLOCK
ALL = Options().spam_headers
USER, TAG, DOMAIN, EVERY = range(4)


def rule(
    number: int, action: SenderAction, rank: int, *, by_header: bool = False
) -> SenderRuleMatch:
    return SenderRuleMatch(number, action, rank, by_header)


def verdict(
    is_spam: bool, reason: VerdictReason, rule_id: int | None = None, score: int = 0
) -> SpamVerdict:
    return SpamVerdict(is_spam=is_spam, score=score, reason=reason, rule_id=rule_id)


BY_RULE, BY_LEVEL, BY_SCORE = VerdictReason.RULE, VerdictReason.LEVEL, VerdictReason.SCORE
DECIDED: list[
    tuple[int, int, list[SenderRuleMatch], SpamVerdict]
] = [  # score, level, rules, verdict
    # the score against the level
    (0, 50, [], verdict(False, BY_SCORE)),
    (49, 50, [], verdict(False, BY_SCORE, score=49)),
    (50, 50, [], verdict(True, BY_SCORE, score=50)),
    (75, 76, [], verdict(False, BY_SCORE, score=75)),
    (1, 1, [], verdict(True, BY_SCORE, score=1)),
    (0, 1, [], verdict(False, BY_SCORE)),
    (99, 99, [], verdict(True, BY_SCORE, score=99)),
    # 0 is always, 100 never
    (0, 0, [], verdict(True, BY_LEVEL)),
    (75, 0, [], verdict(True, BY_LEVEL, score=75)),
    (100, 100, [], verdict(False, BY_LEVEL, score=100)),
    (0, 100, [rule(1, BLOCK, USER)], verdict(False, BY_LEVEL)),
    # a rule beats the score, and level 0
    (100, 1, [rule(1, ALLOW, EVERY)], verdict(False, BY_RULE, 1, 100)),
    (0, 0, [rule(1, ALLOW, EVERY)], verdict(False, BY_RULE, 1)),
    (0, 99, [rule(1, BLOCK, EVERY)], verdict(True, BY_RULE, 1)),
    # the most specific place
    (0, 50, [rule(1, ALLOW, USER), rule(2, BLOCK, TAG)], verdict(False, BY_RULE, 1)),
    (0, 50, [rule(1, BLOCK, DOMAIN), rule(2, ALLOW, TAG)], verdict(False, BY_RULE, 2)),
    (0, 50, [rule(1, BLOCK, EVERY), rule(2, ALLOW, DOMAIN)], verdict(False, BY_RULE, 2)),
    (0, 50, [rule(1, ALLOW, EVERY), rule(2, BLOCK, USER)], verdict(True, BY_RULE, 2)),
    # in one place BLOCK wins
    (0, 50, [rule(1, ALLOW, USER), rule(2, BLOCK, USER)], verdict(True, BY_RULE, 2)),
    (0, 50, [rule(3, BLOCK, TAG), rule(2, ALLOW, TAG)], verdict(True, BY_RULE, 3)),
]


@pytest.mark.parametrize(("score", "level", "rules", "told"), DECIDED)
def test_the_first_line_that_fits_decides(
    score: int, level: int, rules: list[SenderRuleMatch], told: SpamVerdict
) -> None:
    for order in (rules, rules[::-1]):
        assert compute_verdict(SpamFacts(HeaderScore(score)), order, level) == told


def test_a_forged_from_is_allowed_by_nobody_and_blocked_all_the_same() -> None:
    forged = SpamFacts(HeaderScore(60), is_forged=True)
    vouched = replace(forged, spf_passed=True)
    by_header, by_envelope = rule(1, ALLOW, USER, by_header=True), rule(2, ALLOW, EVERY)
    for allow in (by_header, by_envelope):
        assert compute_verdict(SpamFacts(HeaderScore(60)), [allow], 50) == verdict(
            False, BY_RULE, allow.id, 60
        )
        assert compute_verdict(forged, [allow], 50) == verdict(True, BY_SCORE, score=60)
    assert compute_verdict(vouched, [by_header, by_envelope], 50) == verdict(False, BY_RULE, 2, 60)
    assert compute_verdict(vouched, [by_header], 50) == verdict(True, BY_SCORE, score=60)
    for one in (forged, vouched):
        assert compute_verdict(one, [rule(3, BLOCK, USER, by_header=True)], 90).is_spam


@pytest.mark.parametrize(
    ("sender", "found", "forged", "vouched"),
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
def test_what_our_server_found_out_about_the_sender_is_known(
    sender: str, found: dict[str, Any] | None, forged: bool, vouched: bool
) -> None:
    assert spam_facts([], ALL, sender, found) == SpamFacts(HeaderScore(), forged, vouched)


def test_a_filter_overrules_all_but_who_takes_no_mail_for_spam() -> None:
    blocked = compute_verdict(SpamFacts(), [rule(1, BLOCK, USER)], 50)
    assert verdict_after_filter(blocked, None) == blocked
    assert verdict_after_filter(blocked, filter_spam=False) == verdict(False, VerdictReason.FILTER)
    everything = compute_verdict(SpamFacts(), [], 0)
    assert verdict_after_filter(everything, filter_spam=False) == verdict(
        False, VerdictReason.FILTER
    )
    never = compute_verdict(SpamFacts(HeaderScore(75)), [rule(1, BLOCK, USER)], 100)
    assert verdict_after_filter(never, filter_spam=True) == never


SCORES = [  # a field, and the score it gives
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


def score_of(head: str, believed: tuple[str, ...] = ALL) -> HeaderScore:
    raw = f"{head}\r\nFrom: a@b.example\r\nSubject: x\r\n\r\nX-Spam-Flag: YES\r\n".encode()
    return header_score(read_facts(raw).spam_headers, believed)


@pytest.mark.parametrize(("head", "value"), SCORES)
def test_a_field_of_a_filter_is_a_score(head: str, value: int) -> None:
    assert score_of(head) == HeaderScore(value, head.partition(":")[0].lower())


@pytest.mark.parametrize(
    "head", ["X-Other: YES", "X-Spam-Score: high", "X-Spam-Level: none", "X-Spamd-Result: [1/2]"]
)
def test_what_says_nothing_is_no_score(head: str) -> None:
    assert score_of(head) == HeaderScore(0, None)


def test_of_several_fields_the_highest_counts_so_that_none_hides_another() -> None:
    own = "X-Spam-Flag: YES\r\nX-Spam-Score: 6.1"
    forged = "X-Spam-Flag: NO\r\nX-Spam-Score: -99\r\nX-Rspamd-Action: no action"
    for head in (f"{own}\r\n{forged}", f"{forged}\r\n{own}"):
        assert score_of(head) == HeaderScore(61, "x-spam-score")
    flood = "\r\n".join(["X-Spam-Score: 0"] * 10 * MAX_FIELDS_PER_END)
    for head in (f"{own}\r\n{flood}", f"{flood}\r\n{own}"):
        assert score_of(head) == HeaderScore(61, "x-spam-score")


@pytest.mark.parametrize(
    ("found", "flag", "score"),
    [
        ({"policy": "reject"}, "X-Spam-Flag: YES", HeaderScore(75, "authentication-results")),
        ({"policy": "quarantine"}, "X-Spam-Flag: NO", HeaderScore(50, "authentication-results")),
        ({"policy": "quarantine"}, "X-Rspamd-Action: reject", HeaderScore(75, "x-rspamd-action")),
        ({"policy": "none"}, "X-Spam-Flag: NO", HeaderScore(0, "x-spam-flag")),
        ({"policy": None}, "X: y", HeaderScore()),
        ({}, "X: y", HeaderScore()),
    ],
)
def test_the_policy_of_a_forged_domain_is_a_score(
    found: dict[str, Any], flag: str, score: HeaderScore
) -> None:
    told = read_facts(f"{flag}\r\n\r\n".encode()).spam_headers
    assert spam_facts(told, ALL, "", {"dmarc": "fail", **found}) == SpamFacts(score, is_forged=True)
    sealed = {"dmarc": "fail", "policy": "none", "sealer": "list.example"}
    assert not spam_facts(told, ALL, "", sealed).is_forged


def test_only_fields_that_are_named_are_believed() -> None:
    head = "X-Spam-Flag: YES\r\nX-Rspamd-Action: reject"
    assert score_of(head, ("x-spam-FLAG",)) == HeaderScore(50, "x-spam-flag")
    assert score_of(head, ()) == HeaderScore()
    assert tuple(name.lower() for name in ALL) == SPAM_FIELD_NAMES


@given(some.sampled_from(SPAM_FIELD_NAMES), some.text(max_size=MAX_FIELD_LENGTH))
def test_a_field_gives_a_score_whatever_is_in_it(name: str, text: str) -> None:
    assert 0 <= header_score([SpamHeaderField(name, text)], ALL).value <= 100


@pytest.mark.parametrize(
    ("written", "stored"),
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
def test_a_pattern_has_one_form(written: str, stored: str) -> None:
    assert checked_pattern(written, path=["patterns"]) == stored
    assert checked_pattern(stored, path=["patterns"]) == stored


@pytest.mark.parametrize(
    ("written", "constraint"),
    [
        ("", "pattern"),
        ("*", "pattern"),
        ("@", "pattern"),
        ("*@", "pattern"),
        ("*.", "pattern"),
        ("*.*.example", "pattern"),
        ("shop.*", "pattern"),
        ("news*@shop.example", "pattern"),
        ("a@b@shop.example", "pattern"),
        ("a b@shop.example", "pattern"),
        ("news@*.shop.example", "pattern"),
        ("shop..example", "pattern"),
        ("shop\0.example", "pattern"),
        ("x" * 70 + ".example", "pattern"),
        ("x" * 65 + "@shop.example", "pattern"),
        (f"*.{'a.' * MAX_LABELS}example", "max"),
    ],
)
def test_what_is_no_pattern_is_refused(written: str, constraint: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        checked_pattern(written, path=["patterns"], index=3)
    told = refused.value
    assert (told.constraint, told.path, told.index) == (constraint, ["patterns"], 3)


FITS = {  # a sender, and the patterns that match it
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


@pytest.mark.parametrize("sender", FITS)
def test_a_sender_is_matched_by_few_patterns(sender: str) -> None:
    assert set(patterns_matching(sender)) == FITS[sender]


@given(
    some.text(max_size=400)
    | some.from_regex(r"[a-z+.]{1,9}@([a-z-]{1,5}\.){0,140}x", fullmatch=True)
)
def test_any_sender_has_a_bounded_number_of_patterns(sender: str) -> None:
    found = patterns_matching(sender)
    assert len(found) <= MAX_LABELS + 3
    assert len(set(found)) == len(found)


async def put(world: Environment, place: str, action: SenderAction, *these: str) -> list[int]:
    """Rules past all of our own checks."""
    rows: list[dict[str, Any]] = [
        {
            "id": world.new_id(), "place": place, "pattern": one, "action": action,
            "created_at": world.now(),
        }
        for one in these
    ]  # fmt: skip
    async with world.write_session() as session:
        await (await session.connection()).execute(insert(core_table(SenderRule)), rows)
    return [row["id"] for row in rows]


async def test_rules_of_all_recipients_come_by_one_statement(
    world: Environment, statements: list[str]
) -> None:
    ada, bob = await make_user(world, "ada"), await make_user(world, "bob")
    (mine,) = await put(world, place_of_user(ada.id), BLOCK, "shop.example")
    (vips,) = await put(world, place_of_tag("straße".casefold()), ALLOW, "news@shop.example")
    (ours,) = await put(world, f"domain:{ada.domain_id}", BLOCK, "*.example")
    (every,) = await put(world, PLATFORM_PLACE, ALLOW, "far.example")
    await put(world, place_of_user(bob.id), BLOCK, "other.example", "news@other.example")
    recipients = [
        SenderRuleRecipient(ada.id, ada.domain_id),
        SenderRuleRecipient(bob.id, None, ("STRASSE", "x")),
        *(SenderRuleRecipient(n, ada.domain_id) for n in range(1, 19)),
    ]
    del statements[:]
    found = await load_matching_rules(world, recipients, "news+7@shop.example", "ceo@far.example")
    assert len(statements) == 1
    assert found[0] == [
        SenderRuleMatch(mine, BLOCK, USER, matches_only_header=False),
        SenderRuleMatch(ours, BLOCK, DOMAIN, matches_only_header=False),
        SenderRuleMatch(every, ALLOW, EVERY, matches_only_header=True),
    ]
    assert found[1] == [
        SenderRuleMatch(vips, ALLOW, TAG, matches_only_header=False),
        SenderRuleMatch(every, ALLOW, EVERY, matches_only_header=True),
    ]
    assert found[2:] == [[found[0][1], found[0][2]]] * 18
    del statements[:]
    assert await load_matching_rules(world, recipients[:1], "x@none.test", "") == [[]]
    assert len(statements) == 1
    assert await load_matching_rules(world, recipients, "", "no address") == [[]] * 20
    assert await load_matching_rules(world, [], "a@b.example", "a@b.example") == []
    assert len(statements) == 1


async def test_rules_are_looked_up_and_never_scanned(world: Environment) -> None:
    ada = await make_user(world, "ada")
    for n in range(40):
        many = [f"{m}.shop.example" for m in range(50)]
        await put(world, place_of_user(1000 + n), BLOCK, *many, "shop.example", "*.example")
    await put(world, place_of_user(ada.id), ALLOW, "shop.example")
    if world.database.dialect == "postgresql":
        async with world.database.engine.begin() as connection:
            await connection.execute(text("ANALYZE sender_rules"))
    recipients = [
        SenderRuleRecipient(ada.id, 5, ["vip"]),
        *(SenderRuleRecipient(1000 + n, 5) for n in range(20)),
    ]
    with explained(world) as plans:
        work = load_matching_rules(world, recipients, "news@eu.shop.example", "a@b.far.example")
        plan = await plans.of(work, "sender_rules")
    assert "uq_sender_rules_place" in plan or "ix_sender_rules_pattern" in plan, plan
    assert "SCAN sender_rules" not in plan, plan
    assert "Seq Scan on sender_rules" not in plan, plan
    both = "place=? AND pattern=?" in plan or "(place)::text = ANY" in plan
    assert both, plan


async def test_a_message_is_judged_from_its_bytes_to_its_recipient(world: Environment) -> None:
    ada = await make_user(world, "ada")
    read = read_facts(raw_message("Offer", X_Spam_Flag="YES", X_Spam_Score="6.5"))
    seen = spam_facts(read.spam_headers, world.options.spam_headers, "bounce@lists.test")
    to = SenderRuleRecipient(ada.id, ada.domain_id, ada.tags)

    async def judged() -> SpamVerdict:
        (rules,) = await load_matching_rules(
            world, [to], "bounce@lists.test", read.from_[0].address
        )
        return compute_verdict(seen, rules, ada.spam_level)

    assert await judged() == verdict(True, BY_SCORE, score=65)
    (own,) = await put(world, place_of_user(ada.id), ALLOW, "carol@example.com")
    assert await judged() == verdict(False, BY_RULE, own, 65)
    (worse,) = await put(world, place_of_user(ada.id), BLOCK, "lists.test")
    assert await judged() == verdict(True, BY_RULE, worse, 65)
