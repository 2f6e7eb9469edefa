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
from mail.filters.sieve_to_actions import BlockEffect, effect_of_commands
from mail.filters.sieve_to_conditions import (
    ImportProblems,
    QueryForm,
    query_from_test,
    query_requiring_all,
)
from mail.sieve import ScriptProblem, limits
from mail.sieve.execution.signatures import SieveCall
from mail.sieve.source_position import SourcePosition

MAX_NAME = 255  # characters
MAX_COMMENT_LINES = 20  # lines above a branch that are searched
_ROUNDCUBE_NAME = re.compile(r"rule:\[(.*)\]")  # format of Roundcube
_EXPORT_COMMENT = (
    "Sieve does not say:"  # begins the comment of Filter.sieve about targets and webhooks
)

BranchByIf = Mapping[SourcePosition, int]  # branch number by the position of the `if`


@dataclass(frozen=True, slots=True)
class ImportedFilter:
    """A filter imported from a script. Its action has a MailboxName for each mailbox."""

    name: str
    query: QueryForm
    action: dict[str, Any]
    position: SourcePosition


@dataclass(frozen=True, slots=True)
class SieveImport:
    """The filters of a script. They are complete only if there are no errors."""

    filters: Sequence[ImportedFilter]
    errors: Sequence[ScriptProblem]  # in the order of the script, at most 20
    warnings: Sequence[ScriptProblem]  # in the order of the script, at most 20


def import_script(script_text: str, *, reply_interval: int, max_filters: int) -> SieveImport:
    """Import a script. Raises SieveError if it does not compile. Call it in a thread.

    `reply_interval` is the seconds between two replies to a sender.
    """
    program, told = sieve.compile_script(script_text), ImportProblems()
    reader = _ScriptImporter(script_text, reply_interval, max_filters, told)
    reader.import_block(program.calls, [], {}, None)
    reader.warn_about_export_comments()
    filters = reader.adjust_and_check_filters()
    faults = sorted(set(told.errors))[: limits.MAX_PROBLEMS]
    return SieveImport(filters, faults, sorted(told.warnings.values())[: limits.MAX_PROBLEMS])


@dataclass(frozen=True, slots=True)
class _ImportedBlock:
    """An imported filter with its effect and its branch."""

    imported: ImportedFilter
    effect: BlockEffect
    branches: BranchByIf

    def can_follow(self, earlier: "_ImportedBlock") -> bool:
        """Return True if one message can run both blocks: not two branches of the same `if`."""
        mine = self.branches
        return all(mine.get(which, nth) == nth for which, nth in earlier.branches.items())


class _ScriptImporter:
    """The import of one script, in its order."""

    def __init__(
        self, script_text: str, reply_interval: int, max_filters: int, problems: ImportProblems
    ) -> None:
        self.lines = script_text.split("\n")
        self.reply_interval, self.max_filters, self.problems = reply_interval, max_filters, problems
        self.blocks: list[_ImportedBlock] = []

    def import_block(
        self,
        calls: Sequence[SieveCall],
        conditions: Sequence[QueryForm],
        branches: BranchByIf,
        position: SourcePosition | None,
    ) -> None:
        """Import commands that run if all conditions hold."""
        plain: list[SieveCall] = []
        for nth, call in enumerate(calls):
            if call.name == "require":
                continue
            if call.name == "if":
                self.add_filter(plain, conditions, branches, position)
                plain = []
                self.import_all_branches(call, conditions, branches)
                continue
            plain.append(call)
            if call.name == "stop" and nth + 1 < len(calls):
                self.problems.warn(calls[nth + 1].position, "nothing comes here: it is left out")
                break
        self.add_filter(plain, conditions, branches, position)

    def import_all_branches(
        self, call: SieveCall, conditions: Sequence[QueryForm], branches: BranchByIf
    ) -> None:
        """Import an `if` with all its branches."""
        before: list[QueryForm] = []
        for nth, block in enumerate(call.blocks):
            test = call.tests[nth] if nth < len(call.tests) else None
            query = query_from_test(test, self.problems) if test else {}
            if test and test.name == "false":
                self.problems.warn(test.position, "this is never so: it is left out")
                continue
            ours = [*conditions, *([{"not": before}] if before else []), query]
            place = test.position if test and nth else call.position
            if not test and block:
                place = block[0].position
            self.import_block(block, ours, {**branches, call.position: nth}, place)
            if test and test.name == "true":
                break
            if not any(one.name == "stop" for one in block):
                before = [*before, query]

    def add_filter(
        self,
        commands: Sequence[SieveCall],
        conditions: Sequence[QueryForm],
        branches: BranchByIf,
        position: SourcePosition | None,
    ) -> None:
        """Add a filter for these commands, if there are any."""
        if not commands:
            return
        if len(self.blocks) == self.max_filters:
            words = f"a script becomes at most {self.max_filters} filters"
            self.problems.errors.append(ScriptProblem(*commands[0].position, words))
            return
        first = commands[0].position
        deed = effect_of_commands(commands, self.reply_interval, self.problems)
        made = ImportedFilter(
            self.name_from_comments(position or first),
            query_requiring_all(conditions),
            deed.action,
            first,
        )
        self.blocks.append(_ImportedBlock(made, deed, branches))

    def name_from_comments(self, position: SourcePosition) -> str:
        """Return the name from the comments above a line; Roundcube writes `rule:[name]`."""
        name = ""
        for line in reversed(
            self.lines[max(position.line - 1 - MAX_COMMENT_LINES, 0) : position.line - 1]
        ):
            comment = _comment_text(line)
            if comment is None or comment.startswith(_EXPORT_COMMENT):
                break
            rule = _ROUNDCUBE_NAME.fullmatch(comment)
            if rule:
                name = rule[1]
                break
            name = name or comment
        shown = "".join(sign for sign in " ".join(name.split()) if sign.isprintable())
        return shown[:MAX_NAME].strip()

    def warn_about_export_comments(self) -> None:
        """Warn about actions that an exported script only has as comments."""
        for nth, line in enumerate(self.lines):
            if (_comment_text(line) or "").startswith(_EXPORT_COMMENT):
                self.problems.warn(SourcePosition(nth + 1, 1), "what no script says is left out")

    def adjust_and_check_filters(self) -> list[ImportedFilter]:
        """Return the filters, adjusted so that none overrides the result of the script.

        A message that one filter stores is not deleted by a later filter.
        """
        kept: list[ImportedFilter] = []
        for nth, one in enumerate(self.blocks):
            behind = [] if "stop" in one.imported.action else self.blocks[nth + 1 :]
            later = [other for other in behind if one.can_follow(other)]
            action = dict(one.imported.action)
            if one.effect.is_explicit_store and any(
                "delete" in other.effect.action for other in later
            ):
                action["delete"] = False
                if "copyTo" in action and not _has_storage_target(one):
                    words = "besides the copy it stays where it is, whatever is behind"
                    self.problems.warn(one.imported.position, words)
            self.report_delete_before_store(one, later)
            self.warn_about_differences(one, later)
            if action:
                kept.append(
                    ImportedFilter(
                        one.imported.name, one.imported.query, action, one.imported.position
                    )
                )
        return kept

    def report_delete_before_store(
        self, block: _ImportedBlock, later: Sequence[_ImportedBlock]
    ) -> None:
        """Report an error if a filter would delete what the script can still store."""
        storing = next((other for other in later if other.effect.is_explicit_store), None)
        if "delete" in block.effect.action and storing:
            line = storing.imported.position.line
            words = f"what a filter throws away line {line} cannot store: write stop here"
            self.problems.errors.append(ScriptProblem(*block.imported.position, words))

    def warn_about_differences(
        self, block: _ImportedBlock, later: Sequence[_ImportedBlock]
    ) -> None:
        """Warn about differences between the filters and the script."""
        line = block.imported.position.line
        for other in later:
            place, deed = other.imported.position, other.effect
            if (
                _has_storage_target(block)
                and _has_storage_target(other)
                and _storage_target(block) != _storage_target(other)
            ):
                words = f"what line {line} stores is not stored here as well"
                self.problems.warn(place, words, "place")
            if (block.effect.added_flags and deed.resets_flags) or _has_flag_conflict(
                block.effect, deed
            ):
                words = f"of a flag that line {line} names it is that which counts"
                self.problems.warn(place, words, "flag")
            elif block.effect.is_explicit_store and (deed.added_flags or deed.removed_flags):
                words = f"these flags count for what line {line} stores, too"
                self.problems.warn(place, words, "flags")


def _has_flag_conflict(effect: BlockEffect, other_effect: BlockEffect) -> bool:
    """Return True if one effect sets a flag that the other one removes."""
    return bool(
        effect.added_flags & other_effect.removed_flags
        or effect.removed_flags & other_effect.added_flags
    )


@dataclass(frozen=True, slots=True)
class _StorageTarget:
    """Where a block stores the message, without copies."""

    keep: bool
    mailbox: Any
    spam: Any


def _storage_target(block: _ImportedBlock) -> _StorageTarget:
    """Return where a block stores the message."""
    action = block.effect.action
    return _StorageTarget(block.effect.has_keep, action.get("mailbox"), action.get("spam"))


def _has_storage_target(block: _ImportedBlock) -> bool:
    """Return True if a block stores the message somewhere."""
    target = _storage_target(block)
    return bool(target.keep or target.mailbox or target.spam)


def _comment_text(line: str) -> str | None:
    """Return the text of a comment line, None for other lines."""
    line = line.strip()
    if line.startswith("#"):
        return line.lstrip("#").strip()
    return line[2:-2].strip("* \t") if line.startswith("/*") and line.endswith("*/") else None
