"""The agents of the demo, apart from what they import: whoever starts them need not wait for that."""

from __future__ import annotations

from typing import NamedTuple


class Persona(NamedTuple):
    """What one agent of the fleet is like."""

    agent: str
    model: str
    small_model: str
    threads: int
    """Conversations that it works on in turn."""
    at_once: int
    """Runs at the same time."""
    steps: int


PERSONAS = (
    Persona("researcher", "gpt-5-mini", "gpt-5-nano", threads=2, at_once=1, steps=6),
    Persona("coder", "gpt-4.1", "gpt-4.1-mini", threads=1, at_once=2, steps=8),
    Persona("support", "gpt-5-nano", "gpt-5-nano", threads=4, at_once=1, steps=2),
    Persona("writer", "gpt-5", "gpt-5-mini", threads=2, at_once=1, steps=4),
)
