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
from mail.filters.filter_compiler import OTHER_ACTION_PREFIX
from mail.filters.sieve_to_actions import BlockEffect, effect_of_commands
from mail.filters.sieve_to_conditions import (
    ImportProblems,
    QueryForm,
    query_from_test_or_add_problem,
    query_requiring_all,
)
from mail.sieve import ScriptProblem, limits
from mail.sieve.execution.signatures import SieveCall
from mail.sieve.source_position import SourcePosition

MAX_NAME = 255  # characters
MAX_COMMENT_LINES = 20  # lines above a branch that are searched
_ROUNDCUBE_NAME = re.compile(r"rule:\[(.*)\]")  # format of Roundcube

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


def filters_and_problems_from_sieve_script(
    script_text: str, *, reply_interval: int, max_filters: int
) -> SieveImport:
    """Import a script. Raises SieveError if it does not compile. Call it in a thread.

    `reply_interval` is the seconds between two replies to a sender.
    """
    program, problems = sieve.compile_script(script_text), ImportProblems()
    reader = _ScriptImporter(script_text, reply_interval, max_filters, problems)
    reader.import_block(program.calls, [], {}, None)
    reader.warn_about_export_comments()
    filters = reader.adjust_and_check_filters()
    faults = sorted(set(problems.errors))[: limits.MAX_PROBLEMS]
    return SieveImport(filters, faults, sorted(problems.warnings.values())[: limits.MAX_PROBLEMS])


@dataclass(frozen=True, slots=True)
class _ImportedBlock:
    """An imported filter with its effect and its branch."""

    imported: ImportedFilter
    effect: BlockEffect
    branches: BranchByIf

    def can_follow(self, earlier: "_ImportedBlock") -> bool:
        """Return True if one message can run both blocks: not two branches of the same `if`."""
        own_branches = self.branches
        return all(own_branches.get(branch, nth) == nth for branch, nth in earlier.branches.items())


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
                self.problems.warn(
                    calls[nth + 1].position, "The command is never reached: it was omitted."
                )
                break
        self.add_filter(plain, conditions, branches, position)

    def import_all_branches(
        self, call: SieveCall, conditions: Sequence[QueryForm], branches: BranchByIf
    ) -> None:
        """Import an `if` with all its branches."""
        before: list[QueryForm] = []
        for nth, block in enumerate(call.blocks):
            test = call.tests[nth] if nth < len(call.tests) else None
            query = query_from_test_or_add_problem(test, self.problems) if test else {}
            if test and test.name == "false":
                self.problems.warn(test.position, "The test is never true: it was omitted.")
                continue
            queries = [*conditions, *([{"not": before}] if before else []), query]
            position = test.position if test and nth else call.position
            if not test and block:
                position = block[0].position
            self.import_block(block, queries, {**branches, call.position: nth}, position)
            if test and test.name == "true":
                break
            if not any(command.name == "stop" for command in block):
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
            words = f"A script can become at most {self.max_filters} filters."
            self.problems.errors.append(ScriptProblem(*commands[0].position, words))
            return
        first = commands[0].position
        effect = effect_of_commands(commands, self.reply_interval, self.problems)
        new_filter = ImportedFilter(
            self.name_from_comments_or_empty(position or first),
            query_requiring_all(conditions),
            effect.action,
            first,
        )
        self.blocks.append(_ImportedBlock(new_filter, effect, branches))

    def name_from_comments_or_empty(self, position: SourcePosition) -> str:
        """Return the name from the comments above a line; Roundcube writes `rule:[name]`."""
        name = ""
        for line in reversed(
            self.lines[max(position.line - 1 - MAX_COMMENT_LINES, 0) : position.line - 1]
        ):
            comment = _comment_text(line)
            if comment is None or comment.startswith(OTHER_ACTION_PREFIX):
                break
            rule = _ROUNDCUBE_NAME.fullmatch(comment)
            if rule:
                name = rule[1]
                break
            name = name or comment
        clean_name = "".join(sign for sign in " ".join(name.split()) if sign.isprintable())
        return clean_name[:MAX_NAME].strip()

    def warn_about_export_comments(self) -> None:
        """Warn about actions that an exported script only has as comments."""
        for nth, line in enumerate(self.lines):
            if (_comment_text(line) or "").startswith(OTHER_ACTION_PREFIX):
                self.problems.warn(
                    SourcePosition(nth + 1, 1), "The comment can't be imported: it was omitted."
                )

    def adjust_and_check_filters(self) -> list[ImportedFilter]:
        """Return the filters, adjusted so that none overrides the result of the script.

        A message that one filter stores is not deleted by a later filter. Differences that remain
        are added to `problems`. Filters without actions are left out.
        """
        kept_filters: list[ImportedFilter] = []
        for nth, block in enumerate(self.blocks):
            behind = [] if "stop" in block.imported.action else self.blocks[nth + 1 :]
            later = [other for other in behind if block.can_follow(other)]
            action = dict(block.imported.action)
            if block.effect.is_explicit_store and any(
                "delete" in other.effect.action for other in later
            ):
                action["delete"] = False
                if "copyTo" in action and not _has_storage_target(block):
                    words = "The message also stays in the mailbox, whatever follows."
                    self.problems.warn(block.imported.position, words)
            self.report_delete_before_store(block, later)
            self.warn_about_differences(block, later)
            if action:
                kept_filters.append(
                    ImportedFilter(
                        block.imported.name, block.imported.query, action, block.imported.position
                    )
                )
        return kept_filters

    def report_delete_before_store(
        self, block: _ImportedBlock, later: Sequence[_ImportedBlock]
    ) -> None:
        """Report an error if a filter would delete what the script can still store."""
        storing = next((other for other in later if other.effect.is_explicit_store), None)
        if "delete" in block.effect.action and storing:
            line = storing.imported.position.line
            words = (
                f"A filter can't store a message that the command in line {line} "
                "discards: add `stop` here."
            )
            self.problems.errors.append(ScriptProblem(*block.imported.position, words))

    def warn_about_differences(
        self, block: _ImportedBlock, later: Sequence[_ImportedBlock]
    ) -> None:
        """Warn about differences between the filters and the script."""
        line = block.imported.position.line
        for other in later:
            position, effect = other.imported.position, other.effect
            if (
                _has_storage_target(block)
                and _has_storage_target(other)
                and _storage_target(block) != _storage_target(other)
            ):
                words = (
                    f"The message that the command in line {line} stores is not also stored here."
                )
                self.problems.warn(position, words, "place")
            if (block.effect.added_flags and effect.resets_flags) or _has_flag_conflict(
                block.effect, effect
            ):
                words = f"The flags of the command in line {line} apply."
                self.problems.warn(position, words, "flag")
            elif block.effect.is_explicit_store and (effect.added_flags or effect.removed_flags):
                words = (
                    f"These flags also apply to the message that the command in line {line} stores."
                )
                self.problems.warn(position, words, "flags")


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
