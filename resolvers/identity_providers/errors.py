"""Why a sign-in at an identity provider failed."""

from enum import StrEnum


class ProviderFailure(Exception):
    """The provider can't be reached or answers wrongly. The text names the cause, without secrets.

    It can be shown to users and administrators.
    """


class SignInRefusal(StrEnum):
    """Why the provider's answer does not sign in a user."""

    DENIED = "DENIED"  # the user or the provider refused
    EXPIRED = "EXPIRED"  # the page was used before, or is of another browser
    NO_ACCOUNT = "NO_ACCOUNT"  # no account, and none is created
    OTHER_DOMAIN = "OTHER_DOMAIN"  # the address is in another domain
    OTHER_SUBJECT = "OTHER_SUBJECT"  # another account of the provider is linked
    NOT_CREATED = "NOT_CREATED"  # a limit of the domain, or a name that is not possible
    ENDED = "ENDED"  # the account is suspended, deleted, or ended by the provider
    LOCAL_ONLY = "LOCAL_ONLY"  # the account signs in with its password only


class SignInRefused(Exception):
    """The provider's answer does not sign in a user."""

    def __init__(
        self, reason: SignInRefusal, detail: str = "", *, user_id: int | None = None
    ) -> None:
        super().__init__(reason.value)
        self.reason = reason
        self.detail = detail  # for the log
        self.user_id = user_id  # if the account is known
