"""Execution of a program on a message and an environment. The result is a plan.

Nothing is stored or sent here.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from typing import NamedTuple

from mail.mime import DecodedField
from mail.runtime import inline_or_thread
from mail.sieve import limits
from mail.sieve.actions import (
    Action,
    Discard,
    Edit,
    FileInto,
    Keep,
    Redirect,
    Reject,
    ScriptTraceStep,
    SievePlan,
    TrackedDuplicate,
    VacationReply,
)
from mail.sieve.errors import SieveRunError
from mail.sieve.execution import comparators
from mail.sieve.execution.flag_names import canonical_flags
from mail.sieve.execution.signatures import SieveCall, SieveProgram
from mail.sieve.execution.string_templates import MatchReference, SieveString, VariableReference
from mail.sieve.message import SieveEnvelope, SieveMessage, SievePart

_INBOX = "INBOX"
_EXCLUDED_BY_REJECT = (Keep, FileInto, Redirect, Reject, VacationReply)  # RFC 5429, section 2.4


def _no_script(_location: str, _name: str) -> SieveProgram | None:
    return None


@dataclass(frozen=True, slots=True)
class SieveEnvironment:
    """The data that a script can read in addition to the message."""

    now: datetime  # with a zone
    zone: tzinfo = UTC  # of the account
    addresses: Collection[str] = ()  # of the account, in lower case
    subaddress_delimiters: str = "+"  # the first one in a local part ends the user part
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
    script: Callable[[str, str], SieveProgram | None] = (
        _no_script  # an included script by location and name
    )
    traced: bool = True  # record a step for each test and action
    # Texts by comparator and original text, shared by all scripts that run on the message.
    folded_texts: dict[tuple[str, str], str] = field(
        default_factory=dict, compare=False, repr=False
    )


class StopScript(Exception):
    """The script stops."""


class ReturnFromScript(Exception):
    """An included script returns."""


class BreakLoop(Exception):
    """A loop ends: the loop of this name, or the innermost one for ""."""

    def __init__(self, loop_name: str) -> None:
        self.loop_name = loop_name
        super().__init__(loop_name)


def run_script(
    program: SieveProgram,
    message: SieveMessage,
    envelope: SieveEnvelope,
    environment: SieveEnvironment,
) -> SievePlan:
    """Run a script on a message and return its plan.

    The result depends on nothing but the arguments. Raises SieveRunError; the message must then be
    kept as if there were no script.
    """
    running = ScriptRun(program, message, envelope, environment)
    with suppress(StopScript, ReturnFromScript):
        running.execute(program.calls)
    return running.build_plan()


class EvaluatedTest(NamedTuple):
    """The result of a test, and the steps that it took."""

    matches: bool
    step_count: int


class SieveTests:
    """Evaluates the first test of several programs on one message."""

    def __init__(
        self, message: SieveMessage, envelope: SieveEnvelope, environment: SieveEnvironment
    ) -> None:
        self._run = ScriptRun(SieveProgram((), frozenset()), message, envelope, environment)

    def evaluate_first(self, program: SieveProgram) -> EvaluatedTest:
        """Return the result of a program's first test, and the steps it took.

        Raises SieveRunError.
        """
        run = self._run
        run.program, run.steps = program, 0
        return EvaluatedTest(run.evaluate(program.calls[0].tests[0]), run.steps)


class ScriptRun:
    """The state of a running script. Commands and tests read and change it."""

    def __init__(
        self,
        program: SieveProgram,
        message: SieveMessage,
        envelope: SieveEnvelope,
        environment: SieveEnvironment,
    ) -> None:
        self.message, self.envelope, self.environment = message, envelope, environment
        self.program = program
        self.edited_fields: list[DecodedField] | None = None  # None: not edited
        self.fields_by_name: dict[str, list[DecodedField]] | None = (
            None  # in lower case; None: not built yet
        )
        self.values_by_name: dict[str, list[str]] = {}  # by name as the script writes it
        self.addresses_by_raw_field: dict[str, Sequence[str]] = {}  # by raw field
        self.actions: list[Action] = []
        self.edits: list[Edit] = []
        self.tracked_duplicates: list[TrackedDuplicate] = []
        self.checked_duplicate_keys: set[str] = set()
        self.trace: list[ScriptTraceStep] = []
        self.variables: dict[str, str] = {}
        self.global_variables: dict[str, str] = {}  # shared by included scripts (RFC 6609)
        self.global_names: set[str] = set()  # names declared by the `global` command
        self.match_variables: tuple[str, ...] = ()
        self.flags: tuple[str, ...] = ()
        self.has_implicit_keep = True  # the implicit keep
        self.steps = 0
        self.script_name = ""  # of the included script that runs, else ""
        self.include_stack: tuple[
            tuple[str, str], ...
        ] = ()  # location and name of the scripts around it
        self.included_scripts: set[tuple[str, str]] = set()
        self.current_part: SievePart | None = None  # of the innermost foreverypart
        self.has_run_vacation = False  # also if no reply was due

    def execute(self, calls: Iterable[SieveCall]) -> None:
        """Execute commands one after another."""
        for call in calls:
            self.count_steps(call)
            call.signature.execute(self, call)

    def run_included(self, script_key: tuple[str, str], program: SieveProgram) -> None:
        """Run an included script, which has its own variables (RFC 6609, section 3.4).

        `script_key` is its location and name.
        """
        self.included_scripts.add(script_key)
        outer_state = (self.program, self.variables, self.global_names, self.match_variables)
        script, include_stack, part = self.script_name, self.include_stack, self.current_part
        self.current_part = None
        self.program, self.variables, self.global_names, self.match_variables = (
            program,
            {},
            set(),
            (),
        )
        self.script_name, self.include_stack = script_key[1], (*include_stack, script_key)
        with suppress(ReturnFromScript):
            self.execute(program.calls)
        self.program, self.variables, self.global_names, self.match_variables = outer_state
        self.script_name, self.include_stack, self.current_part = script, include_stack, part

    def evaluate(self, call: SieveCall) -> bool:
        """Evaluate a test and return its result."""
        self.count_steps(call)
        result = bool(call.signature.execute(self, call))
        if self.environment.traced:
            self.add_trace_step(call, "true" if result else "false")
        return result

    def count_steps(self, call: SieveCall, steps: int = 1) -> None:
        """Count steps.

        Raises SieveRunError beyond the limit, and InlineTimeExceeded on the event loop.
        """
        inline_or_thread.require_inline_time_left()
        self.steps += steps
        if self.steps > limits.MAX_STEPS:
            raise self.error_at(call, "The script takes too long.")

    def error_at(self, call: SieveCall, message: str) -> SieveRunError:
        """Return the error at the position of a call, with the trace."""
        error = SieveRunError(*call.position, message, script=self.script_name)
        error.trace = tuple(self.trace)
        return error

    def add_trace_step(self, call: SieveCall, text: str) -> None:
        """Add a step to the trace, if there is one."""
        if not self.environment.traced:
            return
        text = f"{call.name}: {text}"
        self.trace.append(
            ScriptTraceStep(call.position, text[: limits.MAX_TRACED_LENGTH], self.script_name)
        )

    def expand_string(self, call: SieveCall, value: SieveString) -> str:
        """Return a string with its variables replaced.

        Raises SieveRunError if it becomes longer than MAX_EXPANDED_LENGTH.
        """
        if isinstance(value, str):
            return value
        out: list[str] = []
        length = 0
        for piece in value.pieces:
            if isinstance(piece, VariableReference):
                text = self.variable_value_or_empty(piece.name)
            elif isinstance(piece, MatchReference):
                text = (
                    self.match_variables[piece.number]
                    if piece.number < len(self.match_variables)
                    else ""
                )
            else:
                text = piece
            length += len(text)
            if length > limits.MAX_EXPANDED_LENGTH:
                raise self.error_at(call, "A string with its variables is too long.")
            out.append(text)
        length += len(value.pieces) * limits.CHARACTERS_PER_PIECE
        self.count_steps(call, length // limits.EXPANDED_CHARACTERS_PER_STEP)
        return "".join(out)

    def expanded_argument_or_empty(self, call: SieveCall, name: str) -> str:
        """Return an argument with its variables replaced, "" if it is missing."""
        return self.expand_string(call, call.string_argument(name))

    def strings_argument(self, call: SieveCall, name: str) -> list[str]:
        """Return the strings of an argument with their variables replaced."""
        strings: list[str] | None = call.cache.get(name)
        if strings is None:
            values = call.strings_argument(name)
            strings = [self.expand_string(call, value) for value in values]
            if all(isinstance(value, str) for value in values):
                call.cache[name] = strings
        # A test looks at each string, also if it compares none with the message.
        self.count_steps(call, len(strings) // limits.STRINGS_PER_STEP)
        return strings

    def comparison_key(self, comparator: str, text: str) -> str:
        """Return the key of a text for a comparator. Keys are cached."""
        keys_by_text, key = self.environment.folded_texts, (comparator, text)
        cached_key = keys_by_text.get(key)
        if cached_key is None:
            cached_key = comparators.EQUALITY_KEYS[comparator](text)
            if len(keys_by_text) < limits.MAX_CACHED_KEYS:
                keys_by_text[key] = cached_key
        return cached_key

    def variable_value_or_empty(self, name: str) -> str:
        """Return the value of a variable, "" if it was never set."""
        bare = name.removeprefix("global.")
        shared = bare != name or bare in self.global_names
        return (self.global_variables if shared else self.variables).get(bare, "")

    def set_variable(self, call: SieveCall, name: str, value: str) -> None:
        """Set a variable. A long value is cut (RFC 5229, section 3)."""
        bare = name.removeprefix("global.")
        values = (
            self.global_variables if bare != name or bare in self.global_names else self.variables
        )
        values[bare] = value[: limits.MAX_VARIABLE_LENGTH]
        if len(self.global_variables) + len(self.variables) > limits.MAX_VARIABLES:
            raise self.error_at(call, f"A script can set at most {limits.MAX_VARIABLES} variables.")

    def fields_named(self, name: str) -> list[DecodedField]:
        """Return the fields with a name, ignoring case, in order."""
        if self.fields_by_name is None:
            self.fields_by_name = {}
            for field in self.all_fields():
                self.fields_by_name.setdefault(field.name.lower(), []).append(field)
        return self.fields_by_name.get(name.lower(), [])

    def values_of_field(self, name: str) -> list[str]:
        """Return the values of the fields with a name, ignoring case, in order."""
        values = self.values_by_name.get(name)
        if values is None:
            values = self.values_by_name[name] = [field.value for field in self.fields_named(name)]
        return values

    def all_fields(self) -> Sequence[DecodedField]:
        """Return the header fields with the edits of the script."""
        return self.message.fields if self.edited_fields is None else self.edited_fields

    def add_edit(self, call: SieveCall, edit: Edit, fields: list[DecodedField]) -> None:
        """Add an edit to the plan; `fields` is the header after the edit."""
        self.count_steps(call, len(fields) // 200)
        self.edits.append(edit)
        if len(self.edits) > limits.MAX_EDITS:
            raise self.error_at(
                call, f"A script can change the header at most {limits.MAX_EDITS} times."
            )
        self.edited_fields, self.fields_by_name, self.values_by_name = fields, None, {}

    def add_or_merge_action(self, call: SieveCall, action: Action) -> None:
        """Add an action to the plan; actions that store in the same mailbox are merged.

        Raises SieveRunError if the action excludes another or a limit is exceeded.
        """
        if isinstance(action, Keep | FileInto):
            target_mailboxes = [_target_mailbox(action) for action in self.actions]
            if _target_mailbox(action) in target_mailboxes:
                at = target_mailboxes.index(_target_mailbox(action))
                self.actions[at] = _merge_store_actions(self.actions[at], action)
                return
        elif isinstance(action, Discard) and action in self.actions:
            return
        elif isinstance(action, Redirect):
            redirect_addresses = [
                action.address.lower() for action in self.actions if isinstance(action, Redirect)
            ]
            if action.address.lower() in redirect_addresses:
                return
            if len(redirect_addresses) >= limits.MAX_REDIRECTS:
                raise self.error_at(
                    call, f"A script can redirect at most {limits.MAX_REDIRECTS} times."
                )
        all_actions = [*self.actions, action]
        rejects = any(isinstance(planned_action, Reject) for planned_action in all_actions)
        if (
            rejects
            and sum(
                isinstance(planned_action, _EXCLUDED_BY_REJECT) for planned_action in all_actions
            )
            > 1
        ):
            raise self.error_at(call, "A rejected message can't be stored, redirected or answered.")
        self.actions.append(action)
        if len(self.actions) > limits.MAX_ACTIONS:
            raise self.error_at(call, f"A script can take at most {limits.MAX_ACTIONS} actions.")

    def build_plan(self) -> SievePlan:
        """Return the plan. The implicit keep is the last action, if it was not cancelled."""
        actions = list(self.actions)
        if self.has_implicit_keep and not any(
            _target_mailbox(action) == _INBOX for action in actions
        ):
            actions.append(
                Keep(canonical_flags(self.flags), is_implicit=True, edit_count=len(self.edits))
            )
        return SievePlan(
            tuple(actions),
            tuple(self.edits),
            tuple(self.tracked_duplicates),
            frozenset(self.checked_duplicate_keys),
            tuple(self.trace),
            self.steps,
        )


def _target_mailbox(action: Action) -> str | None:
    """Return the mailbox that an action stores in, None if it stores nothing."""
    if isinstance(action, Keep):
        return _INBOX
    if not isinstance(action, FileInto):
        return None
    mailbox = _INBOX if action.mailbox.upper() == _INBOX else action.mailbox
    return mailbox if action.special_use is None else f"{action.special_use} {mailbox}"


def _merge_store_actions(earlier: Action, later: Keep | FileInto) -> Keep | FileInto:
    """Merge two actions that store in the same mailbox; the later one decides the flags."""
    if isinstance(earlier, FileInto) and isinstance(later, FileInto):
        create = earlier.create_mailbox or later.create_mailbox
        copy = earlier.keeps_implicit_keep and later.keeps_implicit_keep
        return FileInto(
            later.mailbox,
            later.flags,
            create_mailbox=create,
            keeps_implicit_keep=copy,
            special_use=later.special_use,
            edit_count=later.edit_count,
        )
    return later
