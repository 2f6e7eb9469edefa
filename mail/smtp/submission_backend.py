"""The user of a submission session, and the backend that signs users in and queues messages."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from mail.envelope.dsn_parameters import DsnRequest


@dataclass(frozen=True, slots=True)
class SmtpSubmitter:
    """The user who has signed in to a session."""

    user_id: int
    login_name: str
    auth_version: int
    ip: str | None
    app_password_id: int | None = None  # None: signed in with the password of the account
    access_token_id: int | None = None  # of an OAuth client; None: signed in with a password
    expires_at: datetime | None = None  # of the access token


class SubmissionBackend(Protocol):
    """The backend that signs users in and queues their messages."""

    async def sign_in(self, login_name: str, password: str, ip: str | None) -> SmtpSubmitter:
        """Sign a user in. Raises RequestError if that fails."""

    async def sign_in_by_token(
        self, login_name: str | None, token: str, ip: str | None
    ) -> SmtpSubmitter:
        """Sign a user in with an access token. Raises RequestError if that fails.

        Without a login name, the user of the token is signed in.
        """

    async def is_still_signed_in(self, submitter: SmtpSubmitter) -> bool:
        """True if the credential of a session is valid."""

    async def require_sender_and_sending_limits(
        self, submitter: SmtpSubmitter, envelope_sender: str
    ) -> None:
        """Raise RequestError if the user may not use this address or has reached a sending limit.

        "" is the null sender.
        """

    async def submit(
        self,
        submitter: SmtpSubmitter,
        raw_message: bytes | Path,
        envelope_sender: str,
        recipients: Sequence[tuple[str, DsnRequest]],
    ) -> str:
        """Queue a message for recipients, each with its DSN request; return the queue ID.

        Raises RequestError; then nothing is queued.
        """
