"""End the sessions of a submission listener whose credential has ended."""

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from typing import Any, Protocol

from mail.smtp.submission_backend import SmtpSubmitter, SubmissionBackend
from models.runtime.environment import Environment
from models.sessions.live_sessions import LiveSession, SessionTermination

log = logging.getLogger(__name__)

CHANGE_BATCH_SECONDS = 0.1  # changed credentials of this time are checked together
EXPIRY_SECONDS = 1.0  # between two looks whether a credential has expired
CHECKS_PER_SWEEP = 30  # of all credentials, since a wake-up can be lost
CREDENTIAL_ENDED = SessionTermination("Authentication credentials no longer valid")


class SubmitterSession(LiveSession, Protocol):
    """A submission session."""

    @property
    def submitter(self) -> SmtpSubmitter | None:
        """The user who has signed in; None without one."""


class CredentialWatch:
    """The task that ends sessions after their credential. A message in DATA can end first."""

    def __init__(
        self,
        environment: Environment,
        backend: SubmissionBackend,
        sessions: Iterable[SubmitterSession],
    ) -> None:
        self._environment = environment
        self._backend = backend
        self._sessions = sessions
        self._changed_user_ids = set[int | None]()
        self._expiry_task: asyncio.Task[None] | None = None
        self._tasks = set[asyncio.Task[None]]()
        self.change_count = 0  # rises with each change of credentials
        environment.wakeups.add_credentials_listener(self.recheck_soon)

    def close(self) -> None:
        """Stop, since the listener is closed."""
        self._environment.wakeups.remove_credentials_listener(self.recheck_soon)
        for task in self._tasks:
            task.cancel()

    def note_sign_in(self, user_id: int, change_count_before: int) -> None:
        """Watch a session that has signed in.

        `change_count_before` is the `change_count` before its credential was read.
        """
        if self._expiry_task is None or self._expiry_task.done():
            self._expiry_task = self._run_in_background(
                self._end_expired_sessions_while_signed_in()
            )
        if self.change_count != change_count_before:
            self.recheck_soon(user_id)

    def recheck_soon(self, user_id: int | None) -> None:
        """Check the credentials of a user soon; None checks all."""
        self.change_count += 1
        if not self._signed_in_sessions():
            return
        if not self._changed_user_ids:
            self._run_in_background(self._wait_and_check_changed_users())
        self._changed_user_ids.add(user_id)

    def _run_in_background(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _signed_in_sessions(self) -> list[tuple[SubmitterSession, SmtpSubmitter]]:
        return [(session, session.submitter) for session in self._sessions if session.submitter]

    async def _wait_and_check_changed_users(self) -> None:
        await asyncio.sleep(CHANGE_BATCH_SECONDS)
        user_ids, self._changed_user_ids = self._changed_user_ids, set()
        await self._end_sessions_without_credential(None if None in user_ids else user_ids)

    async def _end_expired_sessions_while_signed_in(self) -> None:
        """End sessions at the expiry of their credential; from time to time check all."""
        check_count = 0
        while sessions := self._signed_in_sessions():
            now = self._environment.now()
            for session, submitter in sessions:
                if submitter.expires_at is not None and submitter.expires_at <= now:
                    self._end(session)
            check_count += 1
            if check_count % CHECKS_PER_SWEEP == 0:
                await self._end_sessions_without_credential(None)
            await asyncio.sleep(EXPIRY_SECONDS)

    async def _end_sessions_without_credential(self, user_ids: set[int | None] | None) -> None:
        """Check the credentials of these users' sessions, or of all. Each one is read once."""
        is_valid = dict[SmtpSubmitter, bool]()
        for session, submitter in self._signed_in_sessions():
            if user_ids is not None and submitter.user_id not in user_ids:
                continue
            try:
                if submitter not in is_valid:
                    is_valid[submitter] = await self._backend.is_still_signed_in(submitter)
            except Exception:  # in a database outage: the next sweep repeats it
                log.exception("Could not check the credential of a session")
                return
            if not is_valid[submitter]:
                self._end(session)

    def _end(self, session: SubmitterSession) -> None:
        self._environment.live_sessions.terminate_unless_ending(session, CREDENTIAL_ENDED)
