"""Requested changes of the flags and keywords of messages, and their validation."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mail.storage.message_flags import SYSTEM_FLAGS, unique_keywords
from models.errors import InvalidInput
from models.validation_constraints import ValidationConstraint

MAX_KEYWORD_LENGTH = 128  # characters
_COLUMN_BY_FLAG = {f"\\{name.capitalize()}": name for name in SYSTEM_FLAGS}


@dataclass(frozen=True, slots=True)
class FlagChanges:
    """Changes of messages. None, and flags that are missing, change nothing."""

    flags: Mapping[str, bool]  # system flags by column name
    add: Sequence[str] = ()  # keywords
    remove: Sequence[str] = ()
    replace: Sequence[str] | None = None  # instead of all keywords
    values: Mapping[str, Any] | None = None  # such as expires and public_metadata
    snooze: str | None = None  # ISO 8601; "" ends the snooze

    @classmethod
    def from_flag_names(
        cls,
        flags: Mapping[str, bool],
        *,
        added: Sequence[str] = (),
        removed: Sequence[str] = (),
        replacement: Sequence[str] | None = None,
        column_values: Mapping[str, Any] | None = None,
    ) -> "FlagChanges":
        r"""Build changes from IMAP names, which contain flags such as `\Seen` and keywords.

        Raises InvalidInput.
        """
        system = dict(flags)
        for path, names, on in (("addFlags", added, True), ("removeFlags", removed, False)):
            system |= {
                _COLUMN_BY_FLAG[name]: on
                for name in _validated_flag_names(names, path)
                if name in _COLUMN_BY_FLAG
            }
        if replacement is not None:
            columns = {
                _COLUMN_BY_FLAG[name]
                for name in _validated_flag_names(replacement, "flags")
                if name in _COLUMN_BY_FLAG
            }
            system |= {name: name in columns for name in SYSTEM_FLAGS}
        return cls(
            system,
            _validated_keywords_without_flags(added, "addFlags"),
            _validated_keywords_without_flags(removed, "removeFlags"),
            None
            if replacement is None
            else _validated_keywords_without_flags(replacement, "flags"),
            column_values,
        )

    @property
    def touched_flag_names(self) -> list[str]:
        """The IMAP names of the flags and keywords that are set or removed."""
        system = [name for name, column in _COLUMN_BY_FLAG.items() if column in self.flags]
        return [*system, *self.add, *self.remove]

    @property
    def flag_names_set_afterwards(self) -> list[str]:
        """The IMAP names of the changed flags and keywords that are set afterwards."""
        system = [name for name, column in _COLUMN_BY_FLAG.items() if self.flags.get(column)]
        return [*system, *self.add, *(self.replace or ())]

    @property
    def is_empty(self) -> bool:
        """True if nothing changes."""
        sets = self.replace is not None or self.snooze is not None
        return not (sets or self.flags or self.add or self.remove or self.values)


def _validated_keywords_without_flags(names: Sequence[str], input_field: str) -> list[str]:
    return unique_keywords(
        name for name in _validated_flag_names(names, input_field) if name not in _COLUMN_BY_FLAG
    )


def validate_keyword(name: str) -> str:
    """Return the keyword. Raises InvalidInput if it is malformed or a system flag."""
    if name[:1] == "\\" or not _is_keyword(name):
        raise InvalidInput(
            "The value must be an IMAP keyword.",
            constraint=ValidationConstraint.PATTERN,
            path=["keyword"],
        )
    return name


def is_flag_or_keyword(name: str) -> bool:
    """True if this is a flag that messages can have here, or a keyword."""
    spelled = f"\\{name[1:].capitalize()}" if name[:1] == "\\" else name
    return spelled in _COLUMN_BY_FLAG or (name[:1] != "\\" and _is_keyword(name))


def _is_keyword(name: str) -> bool:
    return 0 < len(name) <= MAX_KEYWORD_LENGTH and not any(
        c in '(){%*"\\]' or c < "!" for c in name
    )


def _validated_flag_names(names: Sequence[str], input_field: str) -> list[str]:
    """Return the names with canonical spelling of flags. Raises InvalidInput for other texts."""
    flag_names = []
    for index, flag_name in enumerate(names):
        name = f"\\{flag_name[1:].capitalize()}" if flag_name[:1] == "\\" else flag_name
        if name not in _COLUMN_BY_FLAG and not _is_keyword(name):
            raise InvalidInput(
                "The value must be an IMAP flag or keyword.",
                constraint=ValidationConstraint.PATTERN,
                path=["set", input_field],
                index=index,
            )
        flag_names.append(name)
    return flag_names


def columns_from_flag_names(names: Collection[str]) -> dict[str, Any]:
    """Return the column values for these IMAP names of flags and keywords."""
    system = {column: name in names for name, column in _COLUMN_BY_FLAG.items()}
    return {**system, "keywords": [name for name in names if name not in _COLUMN_BY_FLAG]}
