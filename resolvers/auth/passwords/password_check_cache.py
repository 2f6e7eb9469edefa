"""Cache of password checks, for clients that send the password with each request."""

from dataclasses import dataclass, field
from datetime import datetime

from models.runtime.environment import World
from resolvers.auth.credential_cache import LONGEST, MOST, KeptChecks, Memory, is_recent
from resolvers.auth.passwords import password_hashes


@dataclass
class PasswordChecks:
    """Cached password checks of one sign-in.

    A hash is not computed again if the last successful sign-in with this name and password computed
    it less than `credential_cache.MAX_AGE` ago. The stored hash is read each time, so a changed or
    deleted password is refused at once.
    """

    memory: Memory
    digest: str  # of name and password
    now: datetime
    results: dict[str, bool] = field(default_factory=dict)
    has_hashed: bool = False

    async def check(self, world: World, stored: str | None, password: str) -> bool:
        """True if this is the password of the stored hash, from the cache or by a new check."""
        key = self.memory.keyed(f"{stored}\0{password}")
        result = self._kept().get(key)
        if result is None:
            result = await password_hashes.check(world, stored, password)
            self.has_hashed = True
        self.results[key] = result
        return result

    def keep(self) -> None:
        """Cache the results after a successful sign-in. Results cached before keep their age."""
        if not self.has_hashed:
            return
        kept = self.memory.password_checks
        kept.pop(self.digest, None)
        if len(kept) >= MOST:
            del kept[next(iter(kept))]
        kept[self.digest] = KeptChecks(self.results, self.now)

    def _kept(self) -> dict[str, bool]:
        kept = self.memory.password_checks.get(self.digest)
        if kept is None or not is_recent(kept, self.now, LONGEST):
            return {}
        return kept.results
