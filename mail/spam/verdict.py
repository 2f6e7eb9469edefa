"""Whether a message is spam for somebody who receives it.

The first line that fits decides:

| what holds                                | verdict              | reason |
|-------------------------------------------|----------------------|--------|
| a virus was found                         | spam                 | VIRUS  |
| the account's level is 100                | no spam              | LEVEL  |
| a rule about the sender                   | BLOCK: spam, ALLOW: not | RULE |
| the account's level is 0                  | spam                 | LEVEL  |
| the score is the level, or above          | spam                 | SCORE  |
| anything else                             | no spam              | SCORE  |

Of several rules those of the most specific place count: the account's, then those of its tags,
of the domain, of everybody; within one place, and among tags, BLOCK wins over ALLOW, whatever
the patterns. Rules for the sender of the envelope and for the From header count alike. But where
DMARC has found From to be forged, and no seal overrules that, an ALLOW is left out, unless it is
for the sender of the envelope and SPF has passed for that domain.

What a scanner of ours counts in points becomes a score by the account's thresholds: `scored_by`.
From the upper one on the message is refused, unless the level is 100, or an ALLOW holds; one with a
virus is refused by whomsoever, where the operator wants that.

Filters come behind, and overrule all but a virus and a level of 100: `filtered`.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from mail.addresses.address_syntax import normal_domain
from mail.mime import Opinion
from mail.spam.scan_result import Scan
from mail.spam.sender_rules import Match
from models.spam.sender_rules import SenderAction

EVERYTHING, NOTHING = 0, 100  # levels at which all is spam, and none is
FLAGGED = 50  # what a filter calls spam without more words
REFUSED = 75  # what it would refuse
JUNK, REJECT = 8.0, 15.0  # points of a scanner that are as much, where nobody says others
ACTIONS = {  # of rspamd
    "reject": REFUSED,
    "discard": REFUSED,
    "quarantine": REFUSED,
    "soft reject": FLAGGED,
    "rewrite subject": FLAGGED,
    "greylist": FLAGGED,
    "add header": 25,
}
POLICIES = {"quarantine": FLAGGED, "reject": REFUSED}  # of DMARC, where that has failed
POINTS = 5.0  # from where SpamAssassin calls it spam, unless it says another number

_NUMBER = r"(-?[0-9]{1,6}(?:\.[0-9]{1,9})?)"
_FIRST = re.compile(rf"\s*\+?{_NUMBER}(?:\s*/\s*{_NUMBER})?")
_RESULT = re.compile(rf"[^:\[\]]*:\s*(\w+)\s*\[\s*{_NUMBER}\s*/\s*{_NUMBER}\s*\]")
_SCORE = re.compile(rf"\b(?:score|hits)\s*=\s*{_NUMBER}")
_REQUIRED = re.compile(rf"\brequired\s*=\s*{_NUMBER}")
_STARS = re.compile(r"\s*(\*+|\++)")
_YES = ("yes", "true")


class Reason(StrEnum):
    """What decided."""

    LEVEL = "LEVEL"
    RULE = "RULE"
    SCORE = "SCORE"
    FILTER = "FILTER"
    VIRUS = "VIRUS"


@dataclass(frozen=True, slots=True)
class Score:
    """What spam filters before us found: 0, nothing speaks against it, up to 100."""

    value: int = 0
    source: str | None = None  # the field that says so, in lower case; None: none does


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a message before anybody's rules are looked at."""

    score: Score = Score()
    forged: bool = False  # DMARC failed: whoever sent it is not who From says
    vouched: bool = False  # SPF passed for the domain of the envelope's sender
    scan: Scan | None = None  # what scanners of ours found


@dataclass(frozen=True, slots=True)
class Limits:
    """From how many points of a scanner a recipient calls it spam, and has it refused."""

    junk: float = JUNK
    reject: float = REJECT
    viruses: bool = True  # are refused; by the operator


@dataclass(frozen=True, slots=True)
class Spam:
    """The verdict for one recipient."""

    is_spam: bool
    score: int
    reason: Reason
    rule_id: int | None = None
    refused: bool = False  # it is not to be stored


def known(
    opinions: Sequence[Opinion],
    believed: Collection[str],
    sender: str = "",
    verification: Mapping[str, object] | None = None,
    scan: Scan | None = None,
) -> Known:
    """What is known of a message that a trusted neighbour has handed over.

    `believed` are names of fields, in any case; `sender` is that of the envelope;
    `verification` is what the neighbour found out about it, as a letter has it. Of what came in
    any other way nothing is known: `Known()`.
    """
    found = verification or {}
    policy = POLICIES.get(str(found.get("policy")))
    domain, passed = sender.rpartition("@")[2], found.get("spf")
    vouched = bool(domain) and isinstance(passed, str) and _alike(passed, domain)
    score = scored(opinions, believed)
    if policy is not None and (score.source is None or policy > score.value):
        score = Score(policy, "authentication-results")
    forged = found.get("dmarc") == "fail" and not found.get("sealer")
    return Known(score, forged, vouched, scan)


def _alike(one: str, other: str) -> bool:
    return normal_domain(one) == normal_domain(other)


def scored(opinions: Sequence[Opinion], believed: Collection[str]) -> Score:
    """The highest score that one of the believed fields gives: none takes another's away."""
    names = {name.lower() for name in believed}
    best = Score()
    for one in opinions:
        value = _READ[one.name](one.text) if one.name in names else None
        if value is not None and (best.source is None or value > best.value):
            best = Score(value, one.name)
    return best


def decided(facts: Known, rules: Sequence[Match], level: int, limits: Limits | None = None) -> Spam:
    """The verdict for a recipient with these matching rules, this level, 0 to 100, and limits."""
    limits = limits or Limits()
    scan = facts.scan or Scan()
    score, refused = max(facts.score.value, scored_by(scan, limits)), _refused(scan, limits)
    if scan.virus:
        refused |= limits.viruses
        return Spam(is_spam=True, score=score, reason=Reason.VIRUS, refused=refused)
    if level >= NOTHING:
        return Spam(is_spam=False, score=score, reason=Reason.LEVEL)
    if rule := _strongest(facts, rules):
        blocked = rule.action is SenderAction.BLOCK
        refused = refused and blocked
        return Spam(blocked, score, Reason.RULE, rule_id=rule.id, refused=refused)
    if level <= EVERYTHING:
        return Spam(is_spam=True, score=score, reason=Reason.LEVEL, refused=refused)
    spam = refused or score >= level
    return Spam(is_spam=spam, score=score, reason=Reason.SCORE, refused=refused)


def _refused(scan: Scan, limits: Limits) -> bool:
    return scan.forced or (scan.score is not None and scan.score >= limits.reject)


def scored_by(scan: Scan, limits: Limits) -> int:
    """The points of a scanner as a score: FLAGGED at the lower threshold, REFUSED at the upper.

    Between they grow in proportion, and so they do below and above.
    """
    points = scan.score or 0.0
    if scan.forced:
        return REFUSED
    if points >= limits.reject:
        return _share(points, limits.reject, REFUSED)
    if points < limits.junk:
        return _share(points, limits.junk, FLAGGED)
    beyond = points - limits.junk
    return FLAGGED + _share(beyond, limits.reject - limits.junk, REFUSED - FLAGGED)


def filtered(verdict: Spam, says: bool | None) -> Spam:
    """The verdict behind a filter that says spam, or not; None where it says neither."""
    never = verdict.reason is Reason.LEVEL and not verdict.is_spam
    if says is None or never or verdict.reason is Reason.VIRUS:
        return verdict
    return replace(verdict, is_spam=says, reason=Reason.FILTER, rule_id=None)


def _strongest(facts: Known, rules: Sequence[Match]) -> Match | None:
    def believed(rule: Match) -> bool:
        proven = not facts.forged or (facts.vouched and not rule.by_header)
        return proven or rule.action is SenderAction.BLOCK

    def order(rule: Match) -> tuple[int, bool, int]:
        return rule.rank, rule.action is SenderAction.ALLOW, rule.id

    return min(filter(believed, rules), key=order, default=None)


def _flag(text: str) -> int:
    return FLAGGED if text.strip().lower().startswith(_YES) else 0


def _share(points: float, required: float, mark: int) -> int:
    """Points as a score, where `required` of them stand for a mark."""
    whole = int(max(mark * points / required, 0) + 1e-9)  # what is below the mark stays below
    return min(whole, 100)


def _stars(text: str) -> int | None:
    found = _STARS.match(text)
    return _share(len(found[1]), POINTS, FLAGGED) if found else None


def _points(text: str) -> int | None:
    found = _FIRST.match(text)
    if found is None:
        return None
    required = float(found[2] or POINTS)
    return _share(float(found[1]), required if required > 0 else POINTS, FLAGGED)


def _status(text: str) -> int:
    """`Yes, score=7.2 required=5.0 tests=…`; the word outweighs points of which we lack a mark."""
    points, required = _SCORE.search(text), _REQUIRED.search(text)
    needed = float(required[1]) if required else POINTS
    share = _share(float(points[1]), needed if needed > 0 else POINTS, FLAGGED) if points else 0
    return max(share, FLAGGED) if _flag(text) else min(share, FLAGGED - 1)


def _result(text: str) -> int | None:
    """`default: False [3.20 / 15.00]; …`: with as many points as the second it is refused."""
    found = _RESULT.match(text)
    if found is None:
        return None
    needed = float(found[3])
    return max(_share(float(found[2]), needed, REFUSED) if needed > 0 else 0, _flag(found[1]))


_READ: Mapping[str, Callable[[str], int | None]] = {
    "x-rspamd-action": lambda text: ACTIONS.get(" ".join(text.lower().split()), 0),
    "x-spam": _flag,
    "x-spam-flag": _flag,
    "x-spam-level": _stars,
    "x-spam-score": _points,
    "x-spam-status": _status,
    "x-spamd-result": _result,
}
