"""Create many users: all or none of a list, or as many as possible of a part of a file."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from sqlalchemy.exc import IntegrityError

from models.errors import Conflict, ErrorCollector, InvalidInput, RequestError
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers import list_errors
from resolvers.context import Context
from resolvers.users.creation import create as creation_create
from resolvers.users.creation import insert
from resolvers.users.creation.create import CheckedUser, NewUser
from resolvers.users.creation.insert import NewUsersRefused, PreparedUser

MAX_USERS = 250  # of one call
MAX_PASSWORDS = 20  # passwords to hash in one call: each takes a part of a second
CONCURRENT_HASHES = 4
INPUT_PATH = "users"


async def create_users(
    ctx: Context,
    new_users: Sequence[NewUser],
    known_errors: Mapping[int, RequestError] | None = None,
) -> list[User]:
    """Create all of these users in one transaction, in this order.

    Raises MultipleErrors with all errors: the path of each begins with the index of its user.
    `known_errors` are errors found before, by index.
    """
    known_errors = known_errors or {}
    valid_candidates = {nth: new for nth, new in enumerate(new_users) if nth not in known_errors}
    checked_users, errors = await validate_new_users(ctx, valid_candidates, {})
    errors |= list_errors.error_lists(known_errors)
    prepared = {nth: user.prepared for nth, user in checked_users.items()}
    errors |= list_errors.error_lists(await insert.find_collisions_and_limit_errors(ctx, prepared))
    list_errors.raise_errors_with_list_paths([INPUT_PATH], errors)
    prepared = await hash_passwords_and_build_welcomes(ctx, checked_users)
    try:
        await insert.store_users_and_return_errors(
            ctx, prepared, mutation="usersCreate", path_of=lambda nth: [INPUT_PATH, str(nth)]
        )
    except NewUsersRefused as found:
        list_errors.raise_errors_with_list_paths(
            [INPUT_PATH], list_errors.error_lists(found.errors)
        )
    except IntegrityError as clash:  # a concurrent request took it
        raise Conflict(
            "Another request created a user with the same name at the same time: retry.",
            path=[INPUT_PATH],
        ) from clash
    return [user.user for user in prepared.values()]


class ValidatedNewUsers(NamedTuple):
    """The valid users, and the errors of the others, by key."""

    checked_users: dict[int, CheckedUser]
    errors: dict[int, list[RequestError]]


async def validate_new_users(
    ctx: Context, new_users: Mapping[int, NewUser], problems: Mapping[int, ErrorCollector]
) -> ValidatedNewUsers:
    """Validate the fields of each user.

    Returns the valid users, and the errors of the others, by key.
    """
    checked_users, errors = dict[int, CheckedUser](), dict[int, list[RequestError]]()
    for index, new_user in new_users.items():
        warning_count = len(ctx.warnings)
        try:
            checked_users[index] = await creation_create.validate_new_user(
                ctx, new_user, problems.get(index, ErrorCollector())
            )
        except RequestError as refusal:
            errors[index] = refusal.all_errors
        for warning in ctx.warnings[warning_count:]:
            warning.path[:0] = [INPUT_PATH, str(index)]
    return ValidatedNewUsers(checked_users, errors)


async def hash_passwords_and_build_welcomes(
    ctx: Context, checked_users: Mapping[int, CheckedUser]
) -> dict[int, PreparedUser]:
    """Hash the passwords of checked users, a few at a time; return them in the same order."""
    prepared, indexes = dict[int, PreparedUser](), list(checked_users)
    for start in range(0, len(indexes), CONCURRENT_HASHES):
        part = indexes[start : start + CONCURRENT_HASHES]
        part_prepared = await asyncio.gather(
            *(
                creation_create.hash_password_and_build_welcome(ctx, checked_users[key])
                for key in part
            )
        )
        prepared |= zip(part, part_prepared, strict=True)
    return prepared


class CountedNewUser(Protocol):
    """The fields of a new user that count towards the limits of a call."""

    password: str | None
    hashed_password: bool


def require_new_users_within_limits(new_users: Sequence[CountedNewUser]) -> None:
    """Raise InvalidInput for too many users, or too many passwords to hash, in one call."""
    if not 0 < len(new_users) <= MAX_USERS:
        raise InvalidInput(
            f"From 1 to {MAX_USERS:,} users are required.",
            constraint=ValidationConstraint.MAX,
            path=[INPUT_PATH],
        )
    hash_count = sum(bool(new.password) and not new.hashed_password for new in new_users)
    if hash_count > MAX_PASSWORDS:
        text = f"At most {MAX_PASSWORDS} users can have a password that is not hashed."
        raise InvalidInput(text, constraint=ValidationConstraint.MAX, path=[INPUT_PATH])
