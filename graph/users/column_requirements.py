"""Sentences about who can change a field of a user, built from the rules that userUpdate checks."""

from typing import Any

from graph.types.errors import attribute_field
from graph.types.requirement_texts import permission_sentences
from resolvers.users.validation import (
    ADMIN_PERMISSION_BY_COLUMN,
    ADMIN_PERMISSION_FOR_OTHERS_BY_COLUMN,
    OWN_COLUMNS,
    USER_PERMISSION_BY_COLUMN,
)


def user_patch_field(description: str, *columns: str, **field_options: Any) -> Any:
    """Declare a field of UserPatch that changes these columns, all with the same rule."""
    text = f"{description} {column_requirement(columns[0])}".strip()
    return attribute_field(text, **field_options)


def column_requirement(column: str) -> str:
    """Return the sentences that say who can change a column; empty if every user can."""
    sentences = []
    if column not in OWN_COLUMNS:
        sentences.append("Requires role DOMAIN_ADMIN and scope FULL.")
    sentences += permission_sentences(
        USER_PERMISSION_BY_COLUMN.get(column), ADMIN_PERMISSION_BY_COLUMN.get(column)
    )
    if permission_for_others := ADMIN_PERMISSION_FOR_OTHERS_BY_COLUMN.get(column):
        sentences.append(
            f"For other users a DOMAIN_ADMIN also needs the permission {permission_for_others}."
        )
    return " ".join(sentences)
