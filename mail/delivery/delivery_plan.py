"""What the rules of accounts want done with a message: filters first, then the script that runs.

What filters say (mail/filters/filter_result.py) is the default: where it goes if the script keeps
it, and no
script says otherwise. What a script stores, sends on or throws away itself takes its place. So

- a message that is spam goes to Junk where it is kept, unless a filter says that it is none; a
  script that puts it into a folder has its way,
- one that is deleted by a filter is stored nowhere where it is kept, and what filters copy or send
  on is so all the same, whatever the script says, but copies of what is deleted,
- a folder that is not there, and is not to be made, is INBOX,
- a script that fails has done nothing, and shows why.

Deciding asks the store as often for many recipients as for one, and not at all where no account
has rules. What is decided is done by mail/delivery/plan_execution.py.
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

VIRUS = 5  # there is one for certain


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a message is stored, and how it lies there."""

    mailbox_id: int
    key: str | None = None  # OpenPGP, to which it is encrypted; None: it is not
    path: str | None = None  # goes before: a folder to be made, `mailbox_id` where that cannot be
    seen: bool = False
    flagged: bool = False
    answered: bool = False
    keywords: Sequence[str] = ()
    edits: int = 0  # how many of the edits of the header it has


@dataclass(frozen=True, slots=True)
class Sending:
    """To whom a message is sent on, and how many of the edits of its header it has."""

    address: str
    edits: int = 0


@dataclass(frozen=True, slots=True)
class Ruled:
    """What is to be done with a message for one recipient."""

    judged: Judged  # with what filters say of it
    spots: Sequence[Spot]  # the first is where it went; none: it is not stored
    kept: Spot  # where it goes if what is done instead cannot be done
    sendings: Sequence[Sending] = ()
    rejection: str | None = None  # why it is refused; then nothing else is done
    vacation: Vacation | None = None
    notices: Sequence[Notify] = ()
    edits: Sequence[Edit] = ()
    remembered: Sequence[Remembered] = ()
    asked: frozenset[str] = frozenset()  # ids that it hung on
    seen: frozenset[str] = frozenset()  # those of them that were remembered
    decision: Decision = NOTHING  # targets, replies and webhooks are those of filters
    boxes: Boxes = NONE
    script_id: int | None = None
    error: str | None = None  # what the script is shown to have failed with

    @property
    def stored(self) -> bool:
        """Whether it is stored at all."""
        return bool(self.spots)


@dataclass(frozen=True, slots=True)
class Letter:
    """A message as rules look at it."""

    message: sieve.Message
    sender: str  # of the envelope
    looked: bool = False  # a spam filter has, so the score of a verdict says something
    virus: int | None = None  # as RFC 5235 counts, section 3.3
    near: bool = False  # at hand, and small


@dataclass(frozen=True, slots=True)
class _Case:
    """A script that is to run for a recipient."""

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
    """What is to be done for each recipient, in their order; what filters say likewise."""
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
    """Whether the folders of the account have to be known for what filters say."""
    places = said.mailbox_id is not None or said.copies or said.spam is not None
    return bool(places or said.replies)


def letter_of(world: World, mail: "Mail") -> Letter:
    """A message that has come, as rules look at it."""
    letter, scan = mail.letter, mail.letter.scan
    looked = scan is not None and scan.score is not None
    if mail.handed:
        found = spam_verdict.scored(letter.facts.opinions, world.options.spam_headers)
        looked = looked or found.source is not None
    virus = VIRUS if scan is not None and scan.virus else None
    return Letter(mail.read, mail.sender, looked, virus, mail.near)


# ---------------------------------------------------------------- running


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a script: a plan, or why there is none."""

    script_id: int | None
    plan: Plan | None = None
    error: str | None = None
    seen: frozenset[str] = frozenset()


async def planned(world: World, letter: Letter, cases: Sequence[_Case]) -> dict[int, Outcome]:
    """What the scripts of these accounts want, by account.

    Those that ask whether something has come before are run again, where it has.
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
    works = {
        ("script", case.judged.to.user_id): partial(_run, world, letter, case) for case in cases
    }
    outcomes = await inline_or_thread.done(works, near=letter.near)
    return {user: outcome for (_, user), outcome in outcomes.items()}


def _run(world: World, letter: Letter, case: _Case) -> Outcome:
    """Run a script; whatever goes wrong with it is its own trouble."""
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
    except Exception:  # the message is kept: it must not wait for the end of a bug
        log.exception("a script could not be run", extra={"user": to.user_id})
        return Outcome(script.id, error="it could not be run; the server's log has more")
    return Outcome(script.id, plan, seen=case.seen)


def told(error: RunError) -> str:
    """What went wrong in a script, and where, in a line."""
    return f"{error.script}: {error}" if error.script else str(error)


# ---------------------------------------------------------------- deciding


def decided(judged: Judged, said: Decision, boxes: Boxes, outcome: Outcome | None = None) -> Ruled:
    """What is done for a recipient: a pure matter."""
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
    """The verdict behind the filters, and the folder that goes with it."""
    verdict: Spam = spam_verdict.filtered(judged.verdict, said.spam)
    if verdict.is_spam == judged.verdict.is_spam:
        return replace(judged, verdict=verdict)
    box = boxes.by_use(SpecialUse.JUNK if verdict.is_spam else SpecialUse.INBOX)
    to = replace(judged.to, mailbox_id=box.id, key=box.key) if box else judged.to
    return replace(judged, verdict=verdict, to=to)


def _default(judged: Judged, said: Decision, boxes: Boxes) -> Spot | None:
    """Where a message goes that is kept; None: a filter has it deleted."""
    if said.delete:
        return None
    spot = Spot(judged.to.mailbox_id, judged.to.key)
    if not judged.verdict.is_spam and (box := boxes.by_id(said.mailbox_id)):
        spot = Spot(box.id, box.key)
    return _marked(spot, said)


def _copies(said: Decision, boxes: Boxes) -> Sequence[Spot]:
    found = [box for key in said.copies if (box := boxes.by_id(key))]
    return [_marked(Spot(box.id, box.key), said) for box in found]


def _marked(spot: Spot, said: Decision) -> Spot:
    """A place with the flags and keywords that filters give and take."""
    taken = {word.casefold() for word in said.removed}
    words = {word.casefold(): word for word in (*spot.keywords, *said.labels)}
    keywords = [word for folded, word in words.items() if folded not in taken][:KEYWORDS]
    seen, flagged = spot.seen or said.seen, spot.flagged or said.flagged
    return replace(spot, seen=seen, flagged=flagged, keywords=keywords)


def _followed(done: Ruled, plan: Plan, default: Spot | None, copies: Sequence[Spot]) -> Ruled:
    """What is done by the plan of a script, where `default` is what keeping means."""
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
    if done.judged.verdict.is_spam and sendings:  # spam is not sent on: it would be ours
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
    """A place with the flags of an action, and its edits."""
    marks = flags_of(action.flags)
    keywords = [*spot.keywords, *marks.pop("keywords")]
    return _marked(replace(spot, **marks, keywords=keywords, edits=action.edits), said)


def _each_once(spots: Sequence[Spot]) -> list[Spot]:
    """One place for each folder: where it stood first, and as it was said last."""
    found: dict[tuple[int, str | None], Spot] = {}
    for spot in spots:
        found[spot.mailbox_id if spot.path is None else 0, spot.path] = spot
    return list(found.values())
