"""GraphQL types of password policies."""

from typing import Any

import strawberry
from strawberry import UNSET

from graph.types.errors import leaf
from resolvers.auth.passwords import password_policy

PLATFORMS = "null = the platform's."


@strawberry.type(
    description="What a password must have when it is set. Imported hashes go by, and whoever has "
    "another password keeps it."
)
class PasswordPolicy:
    min_length: int = leaf("Characters, at least.")
    min_classes: int = leaf("Of lower case, upper case, digits and all else, so many at least.")
    own_min_length: int | None = leaf(f"What the domain itself says of minLength; {PLATFORMS}")
    own_min_classes: int | None = leaf(f"What the domain itself says of minClasses; {PLATFORMS}")

    @classmethod
    def of(cls, policy: password_policy.PasswordPolicy) -> "PasswordPolicy":
        """Return the GraphQL object of a password policy."""
        return cls(
            min_length=policy.min_length,
            min_classes=policy.min_classes,
            own_min_length=policy.own_min_length,
            own_min_classes=policy.own_min_classes,
        )


@strawberry.input(description="How strong passwords must be; absent = as it is.")
class PasswordPolicyInput:
    min_length: int | None = leaf(f"1 to 256 characters; {PLATFORMS}", default=UNSET)
    min_classes: int | None = leaf(
        "1 to 4 kinds of characters. NIST SP 800-63B advises against asking for more than one; "
        f"{PLATFORMS}",
        default=UNSET,
    )


def columns(given: PasswordPolicyInput | None) -> dict[str, Any]:
    """Return the column values of a domain's password policy.

    Absent fields are left out. None as input resets every value to the platform's.
    """
    values = {
        "password_min": given.min_length if given else None,
        "password_classes": given.min_classes if given else None,
    }
    return {name: value for name, value in values.items() if value is not UNSET}
