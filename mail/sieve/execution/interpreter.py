"""Execution of a program on a message and an environment. The result is a plan.

Nothing is stored or sent here.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo

from mail.mime import Header
from mail.runtime import inline_or_thread
from mail.sieve import limits
from mail.sieve.actions import (
    Action,
    Discard,
    Edit,
    FileInto,
    Keep,
    Plan,
    Redirect,
    Reject,
    Remembered,
    Traced,
    Vacation,
)
from mail.sieve.errors import RunError
from mail.sieve.execution import comparators
from mail.sieve.execution.flag_names import spelled
from mail.sieve.execution.signatures import Call, Program
from mail.sieve.execution.string_templates import Match, String, Variable
from mail.sieve.message import Envelope, Message, Piece

_INBOX = "INBOX"
_AGAINST_REJECT = (Keep, FileInto, Redirect, Reject, Vacation)  # RFC 5429, section 2.4


def _no_script(_location: str, _name: str) -> Program | None:
    return None


@dataclass(frozen=True, slots=True)
class Circumstances:
    """The data that a script can read in addition to the message."""

    now: datetime  # with a zone
    zone: tzinfo = UTC  # of the account
    addresses: Collection[str] = ()  # of the account, in lower case
    mailboxes: Collection[str] = ()  # of the account, with the right to insert messages
    special_uses: Mapping[str, Collection[str]] = field(default_factory=dict)  # by mailbox
    # Annotations by mailbox, "" for the server, and name in lower case, such as "/private/comment".
    metadata: Mapping[tuple[str, str], str] = field(default_factory=dict)
    seen: Collection[str] = ()  # keys of `duplicate` that are stored
    items: Mapping[str, str] = field(default_factory=dict)  # of the `environment` test, by name
    spam: float | None = None  # None: not scanned
    virus: int | None = (
        None  # 1 (no virus) to 5 (certain); None: not scanned (RFC 5235, section 3.3)
    )
    script: Callable[[str, str], Program | None] = (
        _no_script  # an included script by location and name
    )
    traced: bool = True  # record a step for each test and action
    # Texts by comparator and original text, shared by all scripts that run on the message.
    folded: dict[tuple[str, str], str] = field(default_factory=dict, compare=False, repr=False)


class Stop(Exception):
    """The script stops."""


class Return(Exception):
    """An included script returns."""


class Break(Exception):
    """A loop ends: the loop of this name, or the innermost one for ""."""

    def __init__(self, loop: str) -> None:
        self.loop = loop
        super().__init__(loop)


def run(
    program: Program, message: Message, envelope: Envelope, circumstances: Circumstances
) -> Plan:
    """Run a script on a message and return its plan.

    The result depends on nothing but the arguments. Raises SieveRunError; the message must then be
    kept as if there were no script.
    """
    running = Run(program, message, envelope, circumstances)
    with suppress(Stop, Return):
        running.execute(program.calls)
    return running.plan()


class Tests:
    """Evaluates the first test of several programs on one message."""

    def __init__(self, message: Message, envelope: Envelope, circumstances: Circumstances) -> None:
        self._run = Run(Program((), frozenset()), message, envelope, circumstances)

    def holds(self, program: Program) -> tuple[bool, int]:
        """Return the result of a program's first test, and the steps it took.

        Raises SieveRunError.
        """
        run = self._run
        run.program, run.steps = program, 0
        return run.test(program.calls[0].tests[0]), run.steps


class Run:
    """The state of a running script. Commands and tests read and change it."""

    def __init__(
        self, program: Program, message: Message, envelope: Envelope, circumstances: Circumstances
    ) -> None:
        self.message, self.envelope, self.circumstances = message, envelope, circumstances
        self.program = program
        self.fields: list[Header] | None = None  # None: not edited
        self.by_name: dict[str, list[Header]] | None = None  # in lower case; None: not built yet
        self.read: dict[str, list[str]] = {}  # by name as the script writes it
        self.addressed: dict[str, Sequence[str]] = {}  # by raw field
        self.actions: list[Action] = []
        self.edits: list[Edit] = []
        self.remembered: list[Remembered] = []
        self.asked: set[str] = set()
        self.trace: list[Traced] = []
        self.variables: dict[str, str] = {}
        self.shared: dict[str, str] = {}  # shared by included scripts (RFC 6609)
        self.global_names: set[str] = set()  # names declared by the `global` command
        self.matches: tuple[str, ...] = ()
        self.flags: tuple[str, ...] = ()
        self.keeps = True  # the implicit keep
        self.steps = 0
        self.script = ""  # of the included script that runs, else ""
        self.within: tuple[tuple[str, str], ...] = ()  # location and name of the scripts around it
        self.included: set[tuple[str, str]] = set()
        self.piece: Piece | None = None  # of the innermost foreverypart
        self.has_answered = False  # also if no reply was due

    def execute(self, calls: Iterable[Call]) -> None:
        """Execute commands one after another."""
        for call in calls:
            self.spend(call)
            call.signature.run(self, call)

    def include(self, which: tuple[str, str], program: Program) -> None:
        """Run an included script, which has its own variables (RFC 6609, section 3.4).

        `script_key` is its location and name.
        """
        self.included.add(which)
        outer = (self.program, self.variables, self.global_names, self.matches)
        script, within, piece = self.script, self.within, self.piece
        self.piece = None
        self.program, self.variables, self.global_names, self.matches = program, {}, set(), ()
        self.script, self.within = which[1], (*within, which)
        with suppress(Return):
            self.execute(program.calls)
        self.program, self.variables, self.global_names, self.matches = outer
        self.script, self.within, self.piece = script, within, piece

    def test(self, call: Call) -> bool:
        """Evaluate a test and return its result."""
        self.spend(call)
        result = bool(call.signature.run(self, call))
        if self.circumstances.traced:
            self.note(call, "true" if result else "false")
        return result

    def spend(self, call: Call, steps: int = 1) -> None:
        """Count steps. Raises SieveRunError beyond the limit, and NotBrief on the event loop."""
        inline_or_thread.check()
        self.steps += steps
        if self.steps > limits.STEPS:
            raise self.failed(call, "the script takes too long")

    def failed(self, call: Call, message: str) -> RunError:
        """Return the error at the position of a call, with the trace."""
        error = RunError(*call.place, message, script=self.script)
        error.trace = tuple(self.trace)
        return error

    def note(self, call: Call, text: str) -> None:
        """Add a step to the trace, if there is one."""
        if not self.circumstances.traced:
            return
        text = f"{call.name}: {text}"
        self.trace.append(Traced(call.place, text[: limits.TRACED], self.script))

    def string(self, call: Call, value: String) -> str:
        """Return a string with its variables replaced.

        Raises SieveRunError if it becomes longer than MAX_EXPANDED_LENGTH.
        """
        if isinstance(value, str):
            return value
        out: list[str] = []
        length = 0
        for piece in value.pieces:
            if isinstance(piece, Variable):
                text = self.variable(piece.name)
            elif isinstance(piece, Match):
                text = self.matches[piece.number] if piece.number < len(self.matches) else ""
            else:
                text = piece
            length += len(text)
            if length > limits.EXPANDED:
                raise self.failed(call, "a string grows too long with its variables")
            out.append(text)
        self.spend(call, length // 1000)
        return "".join(out)

    def text(self, call: Call, name: str) -> str:
        """Return an argument with its variables replaced, "" if it is missing."""
        return self.string(call, call.string(name))

    def texts(self, call: Call, name: str) -> list[str]:
        """Return the strings of an argument with their variables replaced."""
        known: list[str] | None = call.worked.get(name)
        if known is None:
            values = call.strings(name)
            known = [self.string(call, value) for value in values]
            if all(isinstance(value, str) for value in values):
                call.worked[name] = known
        return known

    def folded(self, comparator: str, text: str) -> str:
        """Return the key of a text for a comparator. Keys are cached."""
        known, key = self.circumstances.folded, (comparator, text)
        found = known.get(key)
        if found is None:
            found = comparators.FOLDS[comparator](text)
            if len(known) < limits.FOLDED:
                known[key] = found
        return found

    def variable(self, name: str) -> str:
        """Return the value of a variable, "" if it was never set."""
        bare = name.removeprefix("global.")
        shared = bare != name or bare in self.global_names
        return (self.shared if shared else self.variables).get(bare, "")

    def set_variable(self, call: Call, name: str, value: str) -> None:
        """Set a variable. A long value is cut (RFC 5229, section 3)."""
        bare = name.removeprefix("global.")
        values = self.shared if bare != name or bare in self.global_names else self.variables
        values[bare] = value[: limits.VARIABLE]
        if len(self.shared) + len(self.variables) > limits.VARIABLES:
            raise self.failed(call, f"at most {limits.VARIABLES} variables")

    def headers(self, name: str) -> list[Header]:
        """Return the fields with a name, ignoring case, in order."""
        if self.by_name is None:
            self.by_name = {}
            for one in self.all_fields():
                self.by_name.setdefault(one.key.lower(), []).append(one)
        return self.by_name.get(name.lower(), [])

    def said(self, name: str) -> list[str]:
        """Return the values of the fields with a name, ignoring case, in order."""
        found = self.read.get(name)
        if found is None:
            found = self.read[name] = [one.value for one in self.headers(name)]
        return found

    def all_fields(self) -> Sequence[Header]:
        """Return the header fields with the edits of the script."""
        return self.message.fields if self.fields is None else self.fields

    def edit(self, call: Call, edit: Edit, fields: list[Header]) -> None:
        """Add an edit to the plan; `fields` is the header after the edit."""
        self.spend(call, len(fields) // 200)
        self.edits.append(edit)
        if len(self.edits) > limits.EDITS:
            raise self.failed(call, f"at most {limits.EDITS} changes of the header")
        self.fields, self.by_name, self.read = fields, None, {}

    def act(self, call: Call, action: Action) -> None:
        """Add an action to the plan; actions that store in the same mailbox are merged.

        Raises SieveRunError if the action excludes another or a limit is exceeded.
        """
        if isinstance(action, Keep | FileInto):
            places = [_place(one) for one in self.actions]
            if _place(action) in places:
                at = places.index(_place(action))
                self.actions[at] = _joined(self.actions[at], action)
                return
        elif isinstance(action, Discard) and action in self.actions:
            return
        elif isinstance(action, Redirect):
            there = [one.address.lower() for one in self.actions if isinstance(one, Redirect)]
            if action.address.lower() in there:
                return
            if len(there) >= limits.REDIRECTS:
                raise self.failed(call, f"at most {limits.REDIRECTS} redirects")
        both = [*self.actions, action]
        rejects = any(isinstance(one, Reject) for one in both)
        if rejects and sum(isinstance(one, _AGAINST_REJECT) for one in both) > 1:
            raise self.failed(call, "what is rejected is neither stored, sent on nor answered")
        self.actions.append(action)
        if len(self.actions) > limits.ACTIONS:
            raise self.failed(call, f"at most {limits.ACTIONS} actions")

    def plan(self) -> Plan:
        """Return the plan. The implicit keep is the last action, if it was not cancelled."""
        actions = list(self.actions)
        if self.keeps and not any(_place(one) == _INBOX for one in actions):
            actions.append(Keep(spelled(self.flags), implicit=True, edits=len(self.edits)))
        return Plan(
            tuple(actions),
            tuple(self.edits),
            tuple(self.remembered),
            frozenset(self.asked),
            tuple(self.trace),
            self.steps,
        )


def _place(action: Action) -> str | None:
    """Return the mailbox that an action stores in, None if it stores nothing."""
    if isinstance(action, Keep):
        return _INBOX
    if not isinstance(action, FileInto):
        return None
    mailbox = _INBOX if action.mailbox.upper() == _INBOX else action.mailbox
    return mailbox if action.special_use is None else f"{action.special_use} {mailbox}"


def _joined(earlier: Action, later: Keep | FileInto) -> Keep | FileInto:
    """Merge two actions that store in the same mailbox; the later one decides the flags."""
    if isinstance(earlier, FileInto) and isinstance(later, FileInto):
        create, copy = earlier.create or later.create, earlier.copy and later.copy
        return FileInto(
            later.mailbox,
            later.flags,
            create=create,
            copy=copy,
            special_use=later.special_use,
            edits=later.edits,
        )
    return later
