"""A call that nobody sees is at least known to have been made: a light tap on clients that nothing instruments.

Put on the one method through which such a client sends its requests, and only where nothing instruments it. It looks at
the path of the request and at nothing else, counts for the run in force, and calls on.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from runmeter.guard import logger, unless_the_hosts
from runmeter.otel.in_force import now_in_force
from runmeter.otel.processor import PROCESSOR

TAPPED = ("openai", "anthropic", "groq")
"""Client modules made by one generator, and so alike in where their requests go through."""
PATHS = ("/completions", "/responses", "/messages", "/embeddings")
"""How the paths of model calls end; other requests (files, lists of models) are none."""


def tap(client: str) -> bool:
    """Note the calls of this client library; False where that cannot be done."""
    module = sys.modules.get(f"{client}._base_client") if client in TAPPED else None
    for name in ("SyncAPIClient", "AsyncAPIClient"):
        made: Any = getattr(module, name, None)
        request = getattr(made, "__dict__", {}).get("request")
        if not callable(request):
            return False
        if not hasattr(request, "_runmeter_tap"):
            made.request = _tapped(request)
    return True


def _tapped(request: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(request)
    def tapped(*args: Any, **kwargs: Any) -> Any:
        _note(args, kwargs)
        return request(*args, **kwargs)

    tapped._runmeter_tap = True  # type: ignore[attr-defined]
    return tapped


def _note(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        scope = now_in_force()
        if scope is None or scope.run is None or not PROCESSOR.enabled:
            return
        for options in (kwargs.get("options"), *args[1:3]):
            path = getattr(options, "url", None)
            if isinstance(path, str) and path.partition("?")[0].endswith(PATHS):
                PROCESSOR.mine(scope.run).asked += 1
                return
    except Exception as error:
        unless_the_hosts(error)
        logger.debug("runmeter: a call could not be noted", exc_info=True)
