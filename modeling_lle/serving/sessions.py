"""Sessions: the state and the stream of texts that are read in several calls.

Notable: a call takes a copy of the state and puts the new one in its place when it has ended, so that it counts as a
whole or not at all. Sessions expire, and a tenant has a limited number of them.
"""

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..history.cache import LLECache
from .errors import ServingError, invalid, unknown

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


@dataclass
class Session:
    """A text that is read in several calls.

    Attributes:
        cache: Its state; None before the first call has ended.
        tokens: Tokens that were read or generated.
        used: When it was last used.
        busy: Whether a call goes on with it.
    """

    cache: LLECache | None = None
    tokens: int = 0
    used: float = 0.0
    busy: bool = False


class Sessions:
    """The sessions of the tenants of a model.

    Args:
        most: Sessions of a tenant.
        seconds: Until an unused one expires.
        clock: Tells the time.
    """

    def __init__(self, most: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.seconds, self._clock = most, seconds, clock
        self._of: dict[str, dict[str, Session]] = {}
        self._lock = threading.Lock()
        self.hits = self.misses = 0

    def begin(self, tenant: str, name: str) -> tuple[LLECache | None, int]:
        """Begins a call: a copy of the cache, None in a new session, and the tokens so far; `end` must follow.

        Raises:
            ServingError: The name is not allowed, another call goes on with it, or there are too many sessions.
        """
        with self._lock:
            session = self._get(tenant, name, make=True)
            if session.busy:
                raise ServingError(409, "session_busy", f"another call goes on with the session {name!r}", retry=True)
            session.busy = True
            self.hits += session.cache is not None
            self.misses += session.cache is None
            cache = session.cache
        return (None if cache is None else copy_of(cache)), session.tokens

    def end(self, tenant: str, name: str, cache: LLECache | None, tokens: int) -> None:
        """Ends a call with the new cache and the number of tokens; None: the session stays as it was."""
        with self._lock:
            session = self._of.get(tenant, {}).get(name)
            if session is None:  # removed meanwhile
                return
            session.busy, session.used = False, self._clock()
            if cache is not None:
                session.cache, session.tokens = cache, tokens
            elif session.cache is None:
                del self._of[tenant][name]

    def put(self, tenant: str, name: str, cache: LLECache, tokens: int) -> None:
        """Puts an imported cache in the place of a session; errors as for `begin`."""
        with self._lock:
            session = self._get(tenant, name, make=True)
            if session.busy:
                raise ServingError(409, "session_busy", f"a call goes on with the session {name!r}", retry=True)
            session.cache, session.tokens = cache, tokens

    def get(self, tenant: str, name: str) -> tuple[LLECache, int]:
        """The cache of a session, which must not be changed, and its tokens; raises a ServingError without one."""
        with self._lock:
            session = self._get(tenant, name, make=False)
            if session.cache is None:
                raise unknown(f"there is no session {name!r}", "session_not_found")
            return session.cache, session.tokens

    def names(self, tenant: str) -> dict[str, int]:
        """The sessions of a tenant with their tokens."""
        with self._lock:
            self._expire()
            return {name: own.tokens for name, own in self._of.get(tenant, {}).items() if own.cache is not None}

    def remove(self, tenant: str, name: str) -> None:
        """Removes a session; raises a ServingError without one."""
        with self._lock:
            self._get(tenant, name, make=False)
            del self._of[tenant][name]

    def count(self) -> int:
        """Sessions of all tenants."""
        with self._lock:
            self._expire()
            return sum(map(len, self._of.values()))

    def _get(self, tenant: str, name: str, make: bool) -> Session:
        if not _NAME.fullmatch(name):
            raise invalid("a session is named by up to 128 letters, digits, '_', '.' and '-'", "invalid_session")
        self._expire()
        own = self._of.setdefault(tenant, {})
        if name not in own:
            if not make:
                raise unknown(f"there is no session {name!r}", "session_not_found")
            if len(own) >= self.most:
                raise ServingError(429, "too_many_sessions", f"there are {self.most} sessions: delete one first")
            own[name] = Session()
        own[name].used = self._clock()
        return own[name]

    def _expire(self) -> None:
        now = self._clock()
        for own in self._of.values():
            gone = [name for name, it in own.items() if not it.busy and now - it.used > self.seconds]
            for name in gone:
                del own[name]


def copy_of(cache: LLECache) -> LLECache:
    """A cache with the same text so far, that shares nothing with the given one."""
    own = LLECache.joined([cache])
    own.unread = None if cache.unread is None else cache.unread.clone()
    return own
