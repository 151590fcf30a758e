"""Everything that a store will import, imported before it is used.

SQLAlchemy and the drivers import much at their first connection or statement. Done on the writer's thread, that would
happen while the host works, and two threads that import the same modules meet them half done.
"""

from __future__ import annotations

from importlib import import_module

from runmeter_exporter.store import open_store


def rehearse(url: str) -> None:
    """Import what the store at this URL needs; opens nothing. Raises what `open_store` raises."""
    open_store(url, pool_size=1).dispose()
    import_module("encodings.idna")  # what looking up a host's name imports
