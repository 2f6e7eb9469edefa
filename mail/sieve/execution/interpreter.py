"""Running a script: from a program, a message and its circumstances to a plan; nothing is done."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
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
    """What a script may know beside the message."""

    now: datetime  # with a zone
    zone: tzinfo = UTC  # of the account
    addresses: Collection[str] = ()  # of the account, in lower case
    mailboxes: Collection[str] = ()  # of the account, those it may put messages into
    special_uses: Mapping[str, Collection[str]] = field(default_factory=dict)  # by mailbox
    # Annotations by mailbox, "" for the server, and name in lower case, such as "/private/comment".
    metadata: Mapping[tuple[str, str], str] = field(default_factory=dict)
    seen: Collection[str] = ()  # the ids of `duplicate` that are kept
    items: Mapping[str, str] = field(default_factory=dict)  # of `environment`, by name
    spam: float | None = None  # percent; None: nobody has looked
    virus: int | None = None  # 1 is none, 5 is one for certain (RFC 5235, section 3.3)
    script: Callable[[str, str], Program | None] = _no_script  # by location and name
    traced: bool = True  # each test and action is written down
    # Texts of the message as comparators have them, for all scripts that look at it.
    folded: dict[tuple[str, str], str] = field(default_factory=dict, compare=False, repr=False)


class Stop(Exception):
    """The script has ended itself."""


class Return(Exception):
    """The included script has."""


class Break(Exception):
    """The loop of this name has, or the innermost where it is ""."""

    def __init__(self, loop: str) -> None:
        self.loop = loop
        super().__init__(loop)


def run(
    program: Program, message: Message, envelope: Envelope, circumstances: Circumstances
) -> Plan:
    """Say what a script wants done with a message.

    The outcome depends on nothing but the arguments. Raises RunError; the message is then to be
    kept as if there were no script.
    """
    running = Run(program, message, envelope, circumstances)
    with suppress(Stop, Return):
        running.execute(program.calls)
    return running.plan()


class Tests:
    """Tests of several programs on one message, each the first of its program."""

    def __init__(self, message: Message, envelope: Envelope, circumstances: Circumstances) -> None:
        self._run = Run(Program((), frozenset()), message, envelope, circumstances)

    def holds(self, program: Program) -> tuple[bool, int]:
        """Whether its first test holds, and how many steps that took. Raises RunError."""
        run = self._run
        run.program, run.steps = program, 0
        return run.test(program.calls[0].tests[0]), run.steps


class Run:
    """What is known while a script runs; commands and tests work on it."""

    def __init__(
        self, program: Program, message: Message, envelope: Envelope, circumstances: Circumstances
    ) -> None:
        self.message, self.envelope, self.circumstances = message, envelope, circumstances
        self.program = program
        self.fields: list[Header] | None = None  # with what was edited
        self.by_name: dict[str, list[Header]] | None = None  # the same; None: not yet made
        self.read: dict[str, list[str]] = {}  # what those say, by name as it is spelled
        self.addressed: dict[str, Sequence[str]] = {}  # the addresses in a field
        self.actions: list[Action] = []
        self.edits: list[Edit] = []
        self.remembered: list[Remembered] = []
        self.asked: set[str] = set()
        self.trace: list[Traced] = []
        self.variables: dict[str, str] = {}
        self.shared: dict[str, str] = {}  # the variables of all included scripts
        self.global_names: set[str] = set()  # of variables that are shared without saying so
        self.matches: tuple[str, ...] = ()
        self.flags: tuple[str, ...] = ()
        self.keeps = True  # the implicit keep
        self.steps = 0
        self.script = ""  # the name of the included one that runs
        self.within: tuple[tuple[str, str], ...] = ()  # those that have included it
        self.included: set[tuple[str, str]] = set()
        self.piece: Piece | None = None  # that a loop is at
        self.has_answered = False  # or has found that it should not

    def execute(self, calls: Iterable[Call]) -> None:
        """Run commands one after the other."""
        for call in calls:
            self.spend(call)
            call.signature.run(self, call)

    def include(self, which: tuple[str, str], program: Program) -> None:
        """Run another script, which has variables of its own (RFC 6609, section 3.4)."""
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
        """Whether a test is true."""
        self.spend(call)
        result = bool(call.signature.run(self, call))
        if self.circumstances.traced:
            self.note(call, "true" if result else "false")
        return result

    def spend(self, call: Call, steps: int = 1) -> None:
        """Count steps; a run has only so many. Raises NotBrief on the event loop."""
        inline_or_thread.check()
        self.steps += steps
        if self.steps > limits.STEPS:
            raise self.failed(call, "the script takes too long")

    def failed(self, call: Call, message: str) -> RunError:
        """The error at this place."""
        error = RunError(*call.place, message, script=self.script)
        error.trace = tuple(self.trace)
        return error

    def note(self, call: Call, text: str) -> None:
        """Write into the trace."""
        if not self.circumstances.traced:
            return
        text = f"{call.name}: {text}"
        self.trace.append(Traced(call.place, text[: limits.TRACED], self.script))

    def string(self, call: Call, value: String) -> str:
        """A string with its variables put in; in at most limits.EXPANDED characters."""
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
        """The argument of this name with its variables put in; "" where it was not given."""
        return self.string(call, call.string(name))

    def texts(self, call: Call, name: str) -> list[str]:
        """The strings of this name with their variables put in."""
        known: list[str] | None = call.worked.get(name)
        if known is None:
            values = call.strings(name)
            known = [self.string(call, value) for value in values]
            if all(isinstance(value, str) for value in values):
                call.worked[name] = known
        return known

    def folded(self, comparator: str, text: str) -> str:
        """A text of the message as a comparator has it; each is made so once."""
        known, key = self.circumstances.folded, (comparator, text)
        found = known.get(key)
        if found is None:
            found = comparators.FOLDS[comparator](text)
            if len(known) < limits.FOLDED:
                known[key] = found
        return found

    def variable(self, name: str) -> str:
        """The value of a variable; "" where it was never set."""
        bare = name.removeprefix("global.")
        shared = bare != name or bare in self.global_names
        return (self.shared if shared else self.variables).get(bare, "")

    def set_variable(self, call: Call, name: str, value: str) -> None:
        """Set a variable; what is too long is cut (RFC 5229, section 3)."""
        bare = name.removeprefix("global.")
        values = self.shared if bare != name or bare in self.global_names else self.variables
        values[bare] = value[: limits.VARIABLE]
        if len(self.shared) + len(self.variables) > limits.VARIABLES:
            raise self.failed(call, f"at most {limits.VARIABLES} variables")

    def headers(self, name: str) -> list[Header]:
        """The fields of a name, in any case, in their order."""
        if self.by_name is None:
            self.by_name = {}
            for one in self.all_fields():
                self.by_name.setdefault(one.key.lower(), []).append(one)
        return self.by_name.get(name.lower(), [])

    def said(self, name: str) -> list[str]:
        """What the fields of a name say, in any case, in their order."""
        found = self.read.get(name)
        if found is None:
            found = self.read[name] = [one.value for one in self.headers(name)]
        return found

    def all_fields(self) -> Sequence[Header]:
        """The header as edited so far."""
        return self.message.fields if self.fields is None else self.fields

    def edit(self, call: Call, edit: Edit, fields: list[Header]) -> None:
        """Take an edit into the plan, and the header as it is with it."""
        self.spend(call, len(fields) // 200)
        self.edits.append(edit)
        if len(self.edits) > limits.EDITS:
            raise self.failed(call, f"at most {limits.EDITS} changes of the header")
        self.fields, self.by_name, self.read = fields, None, {}

    def act(self, call: Call, action: Action) -> None:
        """Take an action into the plan; of several that store in one mailbox one is left."""
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
        """What came out; the implicit keep is the last action, if it was not cancelled."""
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
    """The mailbox an action stores in; None: it does not."""
    if isinstance(action, Keep):
        return _INBOX
    if not isinstance(action, FileInto):
        return None
    mailbox = _INBOX if action.mailbox.upper() == _INBOX else action.mailbox
    return mailbox if action.special_use is None else f"{action.special_use} {mailbox}"


def _joined(earlier: Action, later: Keep | FileInto) -> Keep | FileInto:
    """The later of two actions that store in one mailbox, with what the earlier asks for beyond."""
    if isinstance(earlier, FileInto) and isinstance(later, FileInto):
        create, copy = earlier.create or later.create, earlier.copy and later.copy
        return replace(later, create=create, copy=copy)
    return later
