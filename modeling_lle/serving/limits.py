"""Limits of the server: what one request, one tenant and all of them together may ask for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits.

    Attributes:
        prompt_tokens: Tokens of a prompt or text.
        new_tokens: Tokens that are generated after a prompt.
        inputs: Prompts, texts or rows of a request.
        queue: Requests that wait for a model; more are refused.
        batch: Texts that a model reads together.
        seconds: Until a request is answered, and until its body has arrived.
        body_bytes: Body of a request.
        session_bytes: Body of a request that imports a session.
        sessions: Sessions of a tenant with a model.
        session_seconds: Until an unused session expires.
        grace_seconds: Until running requests are refused, when the server ends.
    """

    prompt_tokens: int = 16_384
    new_tokens: int = 4_096
    inputs: int = 1_000
    queue: int = 512
    batch: int = 32
    seconds: float = 120.0
    body_bytes: int = 4 << 20
    session_bytes: int = 64 << 20
    sessions: int = 16
    session_seconds: float = 3_600.0
    grace_seconds: float = 10.0
