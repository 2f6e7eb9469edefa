"""Compute the spam verdict of a message for a recipient.

The first line that holds decides:

| what holds                                | verdict              | reason |
|-------------------------------------------|----------------------|--------|
| a virus was found                         | spam                 | VIRUS  |
| the account's level is 100                | no spam              | LEVEL  |
| a rule about the sender                   | BLOCK: spam, ALLOW: not | RULE |
| the account's level is 0                  | spam                 | LEVEL  |
| the score is the level, or above          | spam                 | SCORE  |
| anything else                             | no spam              | SCORE  |

If several rules match, the most specific place decides: account, tags, domain, platform. Within
one place, and among tags, BLOCK has precedence over ALLOW. Rules match the
envelope sender or the From header. If DMARC failed and no ARC seal overrules that, ALLOW rules are
ignored, except for the envelope sender if SPF passed for its domain.

The points of our scanners become a score by the thresholds of the account: `score_from_scan`. A
message at or above the upper threshold is refused, unless the level is 100 or an ALLOW rule
matches. A message with a virus is refused for all recipients if the operator configures that.

Filters run after the verdict and override all but a virus and a level of 100:
`verdict_after_filter`.
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

EVERYTHING, NOTHING = 0, 100  # spam levels
FLAGGED = 50  # score of a message that is only flagged as spam
REFUSED = 75  # score of a message that a spam filter would refuse
JUNK, REJECT = 8.0, 15.0  # scanner points
ACTIONS = {  # of rspamd
    "reject": REFUSED,
    "discard": REFUSED,
    "quarantine": REFUSED,
    "soft reject": FLAGGED,
    "rewrite subject": FLAGGED,
    "greylist": FLAGGED,
    "add header": 25,
}
POLICIES = {"quarantine": FLAGGED, "reject": REFUSED}  # applied if DMARC failed
POINTS = 5.0  # default threshold of SpamAssassin

_NUMBER = r"(-?[0-9]{1,6}(?:\.[0-9]{1,9})?)"
_FIRST = re.compile(rf"\s*\+?{_NUMBER}(?:\s*/\s*{_NUMBER})?")
_RESULT = re.compile(rf"[^:\[\]]*:\s*(\w+)\s*\[\s*{_NUMBER}\s*/\s*{_NUMBER}\s*\]")
_SCORE = re.compile(rf"\b(?:score|hits)\s*=\s*{_NUMBER}")
_REQUIRED = re.compile(rf"\brequired\s*=\s*{_NUMBER}")
_STARS = re.compile(r"\s*(\*+|\++)")
_YES = ("yes", "true")


class Reason(StrEnum):
    """What decided the verdict."""

    LEVEL = "LEVEL"
    RULE = "RULE"
    SCORE = "SCORE"
    FILTER = "FILTER"
    VIRUS = "VIRUS"


@dataclass(frozen=True, slots=True)
class Score:
    """The score that spam filters of other servers gave: 0 to 100."""

    value: int = 0
    source: str | None = None  # header field name in lower case; None: no score found


@dataclass(frozen=True, slots=True)
class Known:
    """The facts about a message that are the same for all recipients."""

    score: Score = Score()
    forged: bool = False  # DMARC failed
    vouched: bool = False  # for the domain of the envelope sender
    scan: Scan | None = None  # result of our scanners


@dataclass(frozen=True, slots=True)
class Limits:
    """The points of a scanner from which a recipient treats a message as spam or refuses it."""

    junk: float = JUNK
    reject: float = REJECT
    viruses: bool = True  # set by the operator


@dataclass(frozen=True, slots=True)
class Spam:
    """The spam verdict for one recipient."""

    is_spam: bool
    score: int
    reason: Reason
    rule_id: int | None = None
    refused: bool = False  # the message must not be stored


def known(
    opinions: Sequence[Opinion],
    believed: Collection[str],
    sender: str = "",
    verification: Mapping[str, object] | None = None,
    scan: Scan | None = None,
) -> Known:
    """Return the spam facts of a message that a trusted server handed over.

    `trusted_names` are names of header fields, in any case. `verification` is the stored result of
    authentication. For other messages pass no header fields.
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
    """Return True if two domains are the same after normalization."""
    return normal_domain(one) == normal_domain(other)


def scored(opinions: Sequence[Opinion], believed: Collection[str]) -> Score:
    """Return the highest score of the trusted header fields."""
    names = {name.lower() for name in believed}
    best = Score()
    for one in opinions:
        value = _READ[one.name](one.text) if one.name in names else None
        if value is not None and (best.source is None or value > best.value):
            best = Score(value, one.name)
    return best


def decided(facts: Known, rules: Sequence[Match], level: int, limits: Limits | None = None) -> Spam:
    """Return the verdict for a recipient with these matching rules, level (0 to 100) and limits."""
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
    """Return True if the scan result refuses the message."""
    return scan.forced or (scan.score is not None and scan.score >= limits.reject)


def scored_by(scan: Scan, limits: Limits) -> int:
    """Return scanner points as a score: FLAGGED_SCORE and REFUSED_SCORE at the thresholds.

    The score is proportional to the points between, below and above the thresholds.
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
    """Return the verdict after a filter that sets spam or not spam; None leaves it unchanged."""
    never = verdict.reason is Reason.LEVEL and not verdict.is_spam
    if says is None or never or verdict.reason is Reason.VIRUS:
        return verdict
    return replace(verdict, is_spam=says, reason=Reason.FILTER, rule_id=None)


def _strongest(facts: Known, rules: Sequence[Match]) -> Match | None:
    """Return the rule that decides, None if there is none.

    ALLOW rules don't count for a forged From address, except by the envelope sender if SPF passed.
    """

    def believed(rule: Match) -> bool:
        proven = not facts.forged or (facts.vouched and not rule.by_header)
        return proven or rule.action is SenderAction.BLOCK

    def order(rule: Match) -> tuple[int, bool, int]:
        return rule.rank, rule.action is SenderAction.ALLOW, rule.id

    return min(filter(believed, rules), key=order, default=None)


def _flag(text: str) -> int:
    """Return the score of `X-Spam-Flag: Yes`."""
    return FLAGGED if text.strip().lower().startswith(_YES) else 0


def _share(points: float, required: float, mark: int) -> int:
    """Return points as a score, where `required` points give `score_at_required`."""
    whole = int(max(mark * points / required, 0) + 1e-9)  # rounding must not reach the threshold
    return min(whole, 100)


def _stars(text: str) -> int | None:
    """Return the score of `X-Spam-Level: ****`."""
    found = _STARS.match(text)
    return _share(len(found[1]), POINTS, FLAGGED) if found else None


def _points(text: str) -> int | None:
    """Return the score of `X-Spam-Score: 7.2 / 15`."""
    found = _FIRST.match(text)
    if found is None:
        return None
    required = float(found[2] or POINTS)
    return _share(float(found[1]), required if required > 0 else POINTS, FLAGGED)


def _status(text: str) -> int:
    """Return the score of `Yes, score=7.2 required=5.0 tests=…`. The word outweighs the points."""
    points, required = _SCORE.search(text), _REQUIRED.search(text)
    needed = float(required[1]) if required else POINTS
    share = _share(float(points[1]), needed if needed > 0 else POINTS, FLAGGED) if points else 0
    return max(share, FLAGGED) if _flag(text) else min(share, FLAGGED - 1)


def _result(text: str) -> int | None:
    """Return the score of `default: False [3.20 / 15.00]; …`, relative to the second number."""
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
