"""Import Sieve scripts as filters.

Each branch of an `if` becomes a filter, and so do the commands outside of it. A later branch holds
only if the earlier ones don't: their conditions are in its `not`, unless they end in `stop`. A
nested `if` also has the conditions of the outer one. Branches that can never run are omitted.

The comment above a branch becomes the name. Differences between filters and script are warnings.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mail import sieve
from mail.filters.sieve_to_actions import Deed, deed_of
from mail.filters.sieve_to_conditions import Query, Told, merged, query_of
from mail.sieve import Problem, limits
from mail.sieve.execution.signatures import Call
from mail.sieve.source_position import Place

NAME = 255  # characters
COMMENTS = 20  # lines above a branch that are searched
_RULE = re.compile(r"rule:\[(.*)\]")  # format of Roundcube
_OURS = "Sieve does not say:"  # begins the comment of Filter.sieve about targets and webhooks

Branches = Mapping[Place, int]  # branch number by the position of the `if`


@dataclass(frozen=True, slots=True)
class Read:
    """A filter imported from a script. Its action has a MailboxName for each mailbox."""

    name: str
    query: Query
    action: dict[str, Any]
    place: Place


@dataclass(frozen=True, slots=True)
class Reading:
    """The filters of a script. They are complete only if there are no errors."""

    filters: Sequence[Read]
    faults: Sequence[Problem]  # in the order of the script, at most 20
    warnings: Sequence[Problem]  # in the order of the script, at most 20


def read(script: str, *, interval: int, most: int) -> Reading:
    """Import a script. Raises SieveError if it does not compile. Call it in a thread.

    `reply_interval` is the seconds between two replies to a sender.
    """
    program, told = sieve.compiled(script), Told()
    reader = _Reader(script, interval, most, told)
    reader.block(program.calls, [], {}, None)
    reader.remind()
    filters = reader.settled()
    faults = sorted(set(told.faults))[: limits.PROBLEMS]
    return Reading(filters, faults, sorted(told.warned.values())[: limits.PROBLEMS])


@dataclass(frozen=True, slots=True)
class _Found:
    """An imported filter with its effect and its branch."""

    read: Read
    deed: Deed
    branches: Branches

    def both(self, other: "_Found") -> bool:
        """Return True if one message can run both blocks: not two branches of the same `if`."""
        mine = self.branches
        return all(mine.get(which, nth) == nth for which, nth in other.branches.items())


class _Reader:
    """The import of one script, in its order."""

    def __init__(self, script: str, interval: int, most: int, told: Told) -> None:
        self.lines = script.split("\n")
        self.interval, self.most, self.told = interval, most, told
        self.found: list[_Found] = []

    def block(
        self, calls: Sequence[Call], asked: Sequence[Query], branches: Branches, place: Place | None
    ) -> None:
        """Import commands that run if all conditions hold."""
        plain: list[Call] = []
        for nth, call in enumerate(calls):
            if call.name == "require":
                continue
            if call.name == "if":
                self.flush(plain, asked, branches, place)
                plain = []
                self.branch(call, asked, branches)
                continue
            plain.append(call)
            if call.name == "stop" and nth + 1 < len(calls):
                self.told.warn(calls[nth + 1].place, "nothing comes here: it is left out")
                break
        self.flush(plain, asked, branches, place)

    def branch(self, call: Call, asked: Sequence[Query], branches: Branches) -> None:
        """Import an `if` with all its branches."""
        before: list[Query] = []
        for nth, block in enumerate(call.blocks):
            test = call.tests[nth] if nth < len(call.tests) else None
            query = query_of(test, self.told) if test else {}
            if test and test.name == "false":
                self.told.warn(test.place, "this is never so: it is left out")
                continue
            ours = [*asked, *([{"not": before}] if before else []), query]
            place = test.place if test and nth else call.place
            if not test and block:
                place = block[0].place
            self.block(block, ours, {**branches, call.place: nth}, place)
            if test and test.name == "true":
                break
            if not any(one.name == "stop" for one in block):
                before = [*before, query]

    def flush(
        self, plain: Sequence[Call], asked: Sequence[Query], branches: Branches, place: Place | None
    ) -> None:
        """Add a filter for these commands, if there are any."""
        if not plain:
            return
        if len(self.found) == self.most:
            words = f"a script becomes at most {self.most} filters"
            self.told.faults.append(Problem(*plain[0].place, words))
            return
        first = plain[0].place
        deed = deed_of(plain, self.interval, self.told)
        made = Read(self.named(place or first), merged(asked), deed.action, first)
        self.found.append(_Found(made, deed, branches))

    def named(self, place: Place) -> str:
        """Return the name from the comments above a line; Roundcube writes `rule:[name]`."""
        name = ""
        for line in reversed(self.lines[max(place.line - 1 - COMMENTS, 0) : place.line - 1]):
            comment = _comment(line)
            if comment is None or comment.startswith(_OURS):
                break
            rule = _RULE.fullmatch(comment)
            if rule:
                name = rule[1]
                break
            name = name or comment
        shown = "".join(sign for sign in " ".join(name.split()) if sign.isprintable())
        return shown[:NAME].strip()

    def remind(self) -> None:
        """Warn about actions that an exported script only has as comments."""
        for nth, line in enumerate(self.lines):
            if (_comment(line) or "").startswith(_OURS):
                self.told.warn(Place(nth + 1, 1), "what no script says is left out")

    def settled(self) -> list[Read]:
        """Return the filters, adjusted so that none overrides the result of the script.

        A message that one filter stores is not deleted by a later filter.
        """
        kept: list[Read] = []
        for nth, one in enumerate(self.found):
            behind = [] if "stop" in one.read.action else self.found[nth + 1 :]
            later = [other for other in behind if one.both(other)]
            action = dict(one.read.action)
            if one.deed.stores and any("delete" in other.deed.action for other in later):
                action["delete"] = False
                if "copyTo" in action and not _places(one):
                    words = "besides the copy it stays where it is, whatever is behind"
                    self.told.warn(one.read.place, words)
            self.lose_nothing(one, later)
            self.compare(one, later)
            if action:
                kept.append(Read(one.read.name, one.read.query, action, one.read.place))
        return kept

    def lose_nothing(self, one: _Found, later: Sequence[_Found]) -> None:
        """Report an error if a filter would delete what the script can still store."""
        storing = next((other for other in later if other.deed.stores), None)
        if "delete" in one.deed.action and storing:
            line = storing.read.place.line
            words = f"what a filter throws away line {line} cannot store: write stop here"
            self.told.faults.append(Problem(*one.read.place, words))

    def compare(self, one: _Found, later: Sequence[_Found]) -> None:
        """Warn about differences between the filters and the script."""
        line = one.read.place.line
        for other in later:
            place, deed = other.read.place, other.deed
            if _places(one) and _places(other) and _place(one) != _place(other):
                words = f"what line {line} stores is not stored here as well"
                self.told.warn(place, words, "place")
            if (one.deed.on and deed.resets) or _against(one.deed, deed):
                words = f"of a flag that line {line} names it is that which counts"
                self.told.warn(place, words, "flag")
            elif one.deed.stores and (deed.on or deed.off):
                words = f"these flags count for what line {line} stores, too"
                self.told.warn(place, words, "flags")


def _against(one: Deed, other: Deed) -> bool:
    """Return True if one effect sets a flag that the other one removes."""
    return bool(one.on & other.off or one.off & other.on)


def _place(one: _Found) -> tuple[bool, Any, Any]:
    """Return where a block stores the message, without copies: keep, mailbox, spam."""
    action = one.deed.action
    return one.deed.keeps, action.get("mailbox"), action.get("spam")


def _places(one: _Found) -> bool:
    """Return True if a block stores the message somewhere."""
    return any(_place(one))


def _comment(line: str) -> str | None:
    """Return the text of a comment line, None for other lines."""
    line = line.strip()
    if line.startswith("#"):
        return line.lstrip("#").strip()
    return line[2:-2].strip("* \t") if line.startswith("/*") and line.endswith("*/") else None
