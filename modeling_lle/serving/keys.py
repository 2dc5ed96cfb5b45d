"""API keys: which tenant a request speaks for.

Notable: keys are kept as SHA-256 only, and every one of them is compared in constant time.
"""

import hashlib
import re
import secrets
from pathlib import Path

LOCAL = "local"  # the only tenant of a server without keys
METRICS = "metrics"  # no tenant: its key reads /metrics and nothing else
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
SHORTEST = 16  # characters of a key


class Keys:
    """The keys of a server.

    Args:
        tenants: The tenant of each key; None: a server without keys, which has one tenant.

    Raises:
        ValueError: A key is too short, a name is not allowed, or two names differ in capitals only, which would share
            a folder on some systems.
    """

    def __init__(self, tenants: dict[str, str] | None = None) -> None:
        self.required = tenants is not None
        given = tenants or {}
        names: dict[str, str] = {}
        for key, tenant in given.items():
            if len(key) < SHORTEST:
                raise ValueError(f"the key of {tenant!r} has less than {SHORTEST} characters: make a longer one")
            if not _TENANT.fullmatch(tenant):
                raise ValueError(f"{tenant!r} cannot name a tenant: use up to 64 letters, digits, '_', '.' and '-'")
            other = names.setdefault(tenant.lower(), tenant)
            if other != tenant:
                raise ValueError(f"the tenants {other!r} and {tenant!r} differ in capitals only: rename one")
        self._hashed = [(_hash(key), tenant) for key, tenant in given.items()]

    @classmethod
    def read(cls, path: Path) -> "Keys":
        """Reads a file with a line `KEY: TENANT` for each key; `#` begins a comment.

        Raises:
            ValueError: A line is no such line, a key stands there twice, or there is none.
        """
        found: dict[str, str] = {}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            key, colon, tenant = (part.strip() for part in line.rpartition(":"))
            if not colon or not key:
                raise ValueError(f"{path}, line {number}: write KEY: TENANT")
            if key in found:
                raise ValueError(f"{path}, line {number}: this key stands there twice")
            found[key] = tenant
        if not found:
            raise ValueError(f"{path} holds no key: write lines KEY: TENANT")
        return cls(found)

    @property
    def tenants(self) -> list[str]:
        """The tenants, sorted."""
        return sorted({tenant for _, tenant in self._hashed} - {METRICS}) if self.required else [LOCAL]

    def owner(self, key: str | None) -> str | None:
        """The tenant that a key names; None for no or a wrong key. Without keys: always the local one."""
        if not self.required:
            return LOCAL
        given, owner = _hash(key or ""), None
        for hashed, tenant in self._hashed:  # all of them, so that the time tells nothing
            if secrets.compare_digest(given, hashed):
                owner = tenant
        return owner


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
