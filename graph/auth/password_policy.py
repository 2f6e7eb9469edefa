"""GraphQL types of password policies."""

from typing import Any

import strawberry
from strawberry import UNSET

from graph.types.errors import attribute_field
from resolvers.auth.passwords import password_policy

DEFAULT_DESCRIPTION = "null = the platform's."


@strawberry.type(
    description="What a password must have when it is set. Imported hashes go by, and whoever has "
    "another password keeps it."
)
class PasswordPolicy:
    min_length: int = attribute_field("Characters, at least.")
    min_classes: int = attribute_field(
        "Of lower case, upper case, digits and all else, so many at least."
    )
    own_min_length: int | None = attribute_field(
        f"What the domain itself says of minLength; {DEFAULT_DESCRIPTION}"
    )
    own_min_classes: int | None = attribute_field(
        f"What the domain itself says of minClasses; {DEFAULT_DESCRIPTION}"
    )

    @classmethod
    def from_policy(cls, policy: password_policy.EffectivePasswordPolicy) -> "PasswordPolicy":
        """Return the GraphQL object of a password policy."""
        return cls(
            min_length=policy.min_length,
            min_classes=policy.min_classes,
            own_min_length=policy.own_min_length,
            own_min_classes=policy.own_min_classes,
        )


@strawberry.input(description="How strong passwords must be; absent = as it is.")
class PasswordPolicyInput:
    min_length: int | None = attribute_field(
        f"1 to 256 characters; {DEFAULT_DESCRIPTION}", default=UNSET
    )
    min_classes: int | None = attribute_field(
        "1 to 4 kinds of characters. NIST SP 800-63B advises against asking for more than one; "
        f"{DEFAULT_DESCRIPTION}",
        default=UNSET,
    )


def policy_column_values(policy_input: PasswordPolicyInput | None) -> dict[str, Any]:
    """Return the column values of a domain's password policy.

    Absent fields are left out. None as input resets every value to the platform's.
    """
    values = {
        "password_min": policy_input.min_length if policy_input else None,
        "password_classes": policy_input.min_classes if policy_input else None,
    }
    return {name: value for name, value in values.items() if value is not UNSET}
