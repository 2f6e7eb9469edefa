"""Plan what the filters and the Sieve script of each recipient do with a message.

The filter result (mail/filters/filter_result.py) is the default. It applies if the script keeps the
message. Stores, redirects and discards of the script replace it:

- A spam message goes to Junk if it is kept, unless a filter says that it is not spam. A
  `fileinto` of the script overrides this.
- A message that a filter deletes is not stored if the script keeps it. Redirects of filters
  happen in any case; copies of a deleted message are not made.
- If a mailbox does not exist and must not be created, INBOX is used.
- A script that fails has no effect, and its error is shown to the user.

The number of SQL statements does not depend on the number of recipients. There is none if no
recipient has rules. mail/delivery/plan_execution.py executes the plan.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mail import sieve
from mail.filters import script_environment
from mail.filters.filter_result import NOTHING, Decision
from mail.filters.script_cache import program_of
from mail.filters.script_environment import NONE, Account, Box, Boxes, Script
from mail.inbound.incoming_message import Mail
from mail.inbound.spam_check import Judged
from mail.runtime import inline_or_thread
from mail.sieve import (
    Edit,
    Envelope,
    FileInto,
    Keep,
    Notify,
    Plan,
    Redirect,
    Reject,
    Remembered,
    RunError,
    SieveError,
    Vacation,
)
from mail.spam import verdict as spam_verdict
from mail.spam.verdict import Spam
from mail.storage.message_flags import KEYWORDS, flags_of
from mail.storage.received_messages import receipt_of
from models.mailboxes.tables import SpecialUse
from models.runtime.environment import World

log = logging.getLogger(__name__)

VIRUS = 5  # RFC 5235: a virus is certain


@dataclass(frozen=True, slots=True)
class Spot:
    """The mailbox a message is stored in, with its flags and encryption key."""

    mailbox_id: int
    key: str | None = None  # OpenPGP; None: not encrypted
    path: str | None = None  # mailbox to create; `mailbox_id` is used if it can't be created
    seen: bool = False
    flagged: bool = False
    answered: bool = False
    keywords: Sequence[str] = ()
    edits: int = 0  # the first header edits of the plan that apply


@dataclass(frozen=True, slots=True)
class Sending:
    """The address a message is redirected to, with the number of header edits to apply."""

    address: str
    edits: int = 0


@dataclass(frozen=True, slots=True)
class Ruled:
    """The delivery plan of one recipient."""

    judged: Judged  # verdict after filters
    spots: Sequence[Spot]  # main placement first; empty: not stored
    kept: Spot  # used if a redirect fails
    sendings: Sequence[Sending] = ()
    rejection: str | None = None  # reason of the refusal; excludes all other actions
    vacation: Vacation | None = None
    notices: Sequence[Notify] = ()
    edits: Sequence[Edit] = ()
    remembered: Sequence[Remembered] = ()
    asked: frozenset[str] = frozenset()  # IDs of `duplicate` tests
    seen: frozenset[str] = frozenset()  # IDs of these tests that were known
    decision: Decision = NOTHING  # its targets, replies and webhooks are still to be done
    boxes: Boxes = NONE
    script_id: int | None = None
    error: str | None = None  # error text that the user sees

    @property
    def stored(self) -> bool:
        """True if the message is stored in at least one mailbox."""
        return bool(self.spots)


@dataclass(frozen=True, slots=True)
class Letter:
    """A message as filters and scripts see it."""

    message: sieve.Message
    sender: str
    looked: bool = False  # a spam filter has scored the message
    virus: int | None = None  # RFC 5235, section 3.3
    near: bool = False  # small enough to run rules on the event loop


@dataclass(frozen=True, slots=True)
class _Case:
    """A script that will run for a recipient."""

    judged: Judged
    script: Script
    account: Account
    receipt: str
    seen: frozenset[str] = frozenset()


async def ruled(
    world: World,
    mail: "Mail",
    judged: Sequence[Judged],
    decisions: Sequence[Decision] = (),
) -> list[Ruled]:
    """Return the delivery plan of each recipient, in the same order.

    Filter results are in the order of the recipients, or empty.
    """
    said = list(decisions) or [NOTHING] * len(judged)
    scripted = [each.to.user_id for each in judged if each.to.scripted]
    scripts = await script_environment.scripts(world, scripted) if scripted else {}
    used = {user: script.requires for user, script in scripts.items()}
    moved = [each.to.user_id for each, one in zip(judged, said, strict=True) if _moves(one)]
    known = dict[int, Account]()
    if used or moved:
        known = await script_environment.accounts(world, {**dict.fromkeys(moved, ()), **used})
    cases = [
        _Case(each, scripts[key], known[key], receipt_of(mail.letter, each.to, mail.sender))
        for each in judged
        if (key := each.to.user_id) in scripts and key in known
    ]
    plans = await planned(world, letter_of(world, mail), cases) if cases else {}
    return [
        decided(each, one, known.get(each.to.user_id, Account()).boxes, plans.get(each.to.user_id))
        for each, one in zip(judged, said, strict=True)
    ]


def _moves(said: Decision) -> bool:
    """Return True if the filter result can only be applied with the mailboxes of the account."""
    places = said.mailbox_id is not None or said.copies or said.spam is not None
    return bool(places or said.replies)


def letter_of(world: World, mail: "Mail") -> Letter:
    """Return an incoming message as input of filters and scripts."""
    letter, scan = mail.letter, mail.letter.scan
    looked = scan is not None and scan.score is not None
    if mail.handed:
        found = spam_verdict.scored(letter.facts.opinions, world.options.spam_headers)
        looked = looked or found.source is not None
    virus = VIRUS if scan is not None and scan.virus else None
    return Letter(mail.read, mail.sender, looked, virus, mail.near)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The plan of a script, or the error of a script that failed."""

    script_id: int | None
    plan: Plan | None = None
    error: str | None = None
    seen: frozenset[str] = frozenset()


async def planned(world: World, letter: Letter, cases: Sequence[_Case]) -> dict[int, Outcome]:
    """Run the scripts of several accounts and return their outcomes by account ID.

    A script that tests `duplicate` runs a second time if one of its IDs is known.
    """
    plans = await _run_all(world, letter, cases)
    asked = {
        (case.judged.to.user_id, case.receipt): outcome.plan.asked
        for case in cases
        if (outcome := plans[case.judged.to.user_id]).plan and outcome.plan.asked
    }
    if asked and (seen := await script_environment.seen(world, asked)):
        again = [
            replace(case, seen=frozenset(seen[key]))
            for case in cases
            if (key := case.judged.to.user_id) in seen
        ]
        plans |= await _run_all(world, letter, again)
    return plans


async def _run_all(world: World, letter: Letter, cases: Sequence[_Case]) -> dict[int, Outcome]:
    """Run each script once and return the outcomes by account ID."""
    works = {
        ("script", case.judged.to.user_id): partial(_run, world, letter, case) for case in cases
    }
    outcomes = await inline_or_thread.done(works, near=letter.near)
    return {user: outcome for (_, user), outcome in outcomes.items()}


def _run(world: World, letter: Letter, case: _Case) -> Outcome:
    """Run one script. Errors become the outcome; they don't stop the delivery."""
    script, to = case.script, case.judged.to
    envelope = Envelope(letter.sender, to.address)
    around = case.account.circumstances(
        script,
        world,
        seen=case.seen,
        spam=case.judged.verdict.score if letter.looked else None,
        virus=letter.virus,
        traced=False,
    )
    try:
        plan = sieve.run(program_of(script.text), letter.message, envelope, around)
    except RunError as error:
        return Outcome(script.id, error=told(error))
    except SieveError as error:
        return Outcome(script.id, error=str(error))
    except Exception:  # a bug in the interpreter must not block the message
        log.exception("a script could not be run", extra={"user": to.user_id})
        return Outcome(script.id, error="it could not be run; the server's log has more")
    return Outcome(script.id, plan, seen=case.seen)


def told(error: RunError) -> str:
    """Return the error of a script in one line, after the name of the included script."""
    return f"{error.script}: {error}" if error.script else str(error)


def decided(judged: Judged, said: Decision, boxes: Boxes, outcome: Outcome | None = None) -> Ruled:
    """Return the delivery plan from the verdict, the filter result and the script outcome."""
    judged = _verdict(judged, said, boxes)
    default = _default(judged, said, boxes)
    kept = default or Spot(judged.to.mailbox_id, judged.to.key)
    copies = () if said.delete else _copies(said, boxes)
    usual = [default, *copies] if default else list(copies)
    done = Ruled(judged, _each_once(usual), kept, decision=said, boxes=boxes)
    if outcome is None:
        return done
    done = replace(done, script_id=outcome.script_id, error=outcome.error, seen=outcome.seen)
    return done if outcome.plan is None else _followed(done, outcome.plan, default, copies)


def _verdict(judged: Judged, said: Decision, boxes: Boxes) -> Judged:
    """Return the verdict after filters, with the mailbox that belongs to it."""
    verdict: Spam = spam_verdict.filtered(judged.verdict, said.spam)
    if verdict.is_spam == judged.verdict.is_spam:
        return replace(judged, verdict=verdict)
    box = boxes.by_use(SpecialUse.JUNK if verdict.is_spam else SpecialUse.INBOX)
    to = replace(judged.to, mailbox_id=box.id, key=box.key) if box else judged.to
    return replace(judged, verdict=verdict, to=to)


def _default(judged: Judged, said: Decision, boxes: Boxes) -> Spot | None:
    """Return the placement of a kept message. Returns None if a filter deletes it."""
    if said.delete:
        return None
    spot = Spot(judged.to.mailbox_id, judged.to.key)
    if not judged.verdict.is_spam and (box := boxes.by_id(said.mailbox_id)):
        spot = Spot(box.id, box.key)
    return _marked(spot, said)


def _copies(said: Decision, boxes: Boxes) -> Sequence[Spot]:
    """Return the placements of the copies that filters make."""
    found = [box for key in said.copies if (box := boxes.by_id(key))]
    return [_marked(Spot(box.id, box.key), said) for box in found]


def _marked(spot: Spot, said: Decision) -> Spot:
    """Return the placement with the flags and keywords that filters add and remove."""
    taken = {word.casefold() for word in said.removed}
    words = {word.casefold(): word for word in (*spot.keywords, *said.labels)}
    keywords = [word for folded, word in words.items() if folded not in taken][:KEYWORDS]
    seen, flagged = spot.seen or said.seen, spot.flagged or said.flagged
    return replace(spot, seen=seen, flagged=flagged, keywords=keywords)


def _followed(done: Ruled, plan: Plan, default: Spot | None, copies: Sequence[Spot]) -> Ruled:
    """Return the delivery plan with the actions of a script applied.

    The placement for `keep` is the default placement of the filters.
    """
    spots, errors = list[Spot](), list[str]()
    more: dict[str, Any] = {}
    notices, sendings = list[Notify](), list[Sending]()
    for action in plan.actions:
        if isinstance(action, Keep) and default is not None:
            spots.append(_flagged(default, action, done.decision))
        elif isinstance(action, FileInto):
            spots.append(_filed(done, action, errors))
        elif isinstance(action, Redirect):
            sendings.append(Sending(action.address, action.edits))
        elif isinstance(action, Reject):
            more["rejection"] = action.reason
        elif isinstance(action, Vacation):
            more["vacation"] = action
        elif isinstance(action, Notify):
            notices.append(action)
    if (
        done.judged.verdict.is_spam and sendings
    ):  # redirected spam would count against our reputation
        sendings = []
        spots = spots or [done.kept]
    return replace(
        done,
        spots=_each_once([*spots, *copies]) if "rejection" not in more else [],
        sendings=sendings,
        notices=notices,
        edits=plan.edits,
        remembered=plan.remembered,
        asked=plan.asked,
        error=errors[0] if errors else None,
        **more,
    )


def _filed(done: Ruled, action: FileInto, errors: list[str]) -> Spot:
    """Return the placement of a `fileinto` action; report a missing mailbox in the errors."""
    boxes, to = done.boxes, done.judged.to
    inbox = boxes.by_use(SpecialUse.INBOX) or Box(to.mailbox_id, "INBOX", None, to.key)
    box = boxes.find(action.mailbox, action.special_use)
    if box is not None:
        spot = Spot(box.id, box.key)
    elif action.create:
        spot = Spot(inbox.id, boxes.key, action.mailbox)
    else:
        errors.append(f'there is no mailbox "{action.mailbox}": the message went to INBOX')
        spot = Spot(inbox.id, inbox.key)
    return _flagged(spot, action, done.decision)


def _flagged(spot: Spot, action: Keep | FileInto, said: Decision) -> Spot:
    """Return the placement with the flags and header edits of an action."""
    marks = flags_of(action.flags)
    keywords = [*spot.keywords, *marks.pop("keywords")]
    return _marked(replace(spot, **marks, keywords=keywords, edits=action.edits), said)


def _each_once(spots: Sequence[Spot]) -> list[Spot]:
    """Return one placement per mailbox: the position of the first, the flags of the last."""
    found: dict[tuple[int, str | None], Spot] = {}
    for spot in spots:
        found[spot.mailbox_id if spot.path is None else 0, spot.path] = spot
    return list(found.values())
