"""Cache of password checks, for clients that send the password with each request."""

from dataclasses import dataclass, field
from datetime import datetime

from models.runtime.environment import Environment
from resolvers.auth.credential_cache import (
    MAX_AGE,
    MAX_ENTRIES,
    CachedPasswordChecks,
    CredentialCache,
    is_recent,
)
from resolvers.auth.passwords import password_hashes


@dataclass
class CachingPasswordCheck:
    """Cached password checks of one sign-in.

    A hash is not computed again if the last successful sign-in with this name and password computed
    it less than `credential_cache.MAX_AGE` ago. The stored hash is read each time, so a changed or
    deleted password is refused at once.
    """

    cache: CredentialCache
    digest: str  # of name and password
    now: datetime
    results: dict[str, bool] = field(default_factory=dict)
    has_hashed: bool = False

    async def check_password(
        self, environment: Environment, password_hash: str | None, password: str
    ) -> bool:
        """True if this is the password of the stored hash, from the cache or by a new check."""
        key = self.cache.password_digest(f"{password_hash}\0{password}")
        result = self._cached_results().get(key)
        if result is None:
            result = await password_hashes.check_password(environment, password_hash, password)
            self.has_hashed = True
        self.results[key] = result
        return result

    def store_results(self, user_id: int) -> None:
        """Cache the results after a user has signed in. Results cached before keep their age."""
        if not self.has_hashed:
            return
        cached = self.cache.password_checks
        cached.pop(self.digest, None)
        if len(cached) >= MAX_ENTRIES:
            del cached[next(iter(cached))]
        cached[self.digest] = CachedPasswordChecks(self.results, user_id, self.now)

    def _cached_results(self) -> dict[str, bool]:
        cached = self.cache.password_checks.get(self.digest)
        if cached is None or not is_recent(cached, self.now, MAX_AGE):
            return {}
        cached.last_hit_at = self.now
        return cached.results
