"""The totals of everything, taken apart: every run that closes adds to the same few rows, and PostgreSQL lets one
transaction at a time do so until it has committed. So each transaction adds to one of several rows, its stripe, and
whoever reads adds the stripes up.

SQLite has one writer at a time and no stripes. Only plain upserts and sums are used, no advisory locks and no SKIP
LOCKED: what speaks PostgreSQL's protocol without being PostgreSQL has not got them all.
"""

from __future__ import annotations

import random

from runmeter_exporter.totals.rollup import EVERYTHING

STRIPES = 16
"""As many as writers that close runs at the same moment; rows to read grow with it."""
SCOPES = (EVERYTHING, *(f"e:{number}" for number in range(1, STRIPES)))
"""The scope of everything in each stripe. The first is what stores without stripes have."""
_EVERYTHING = frozenset(SCOPES)


def any_stripe() -> int:
    """The stripe of a transaction. By chance, since processes know nothing of each other."""
    return random.randrange(STRIPES)


def is_everything(scope: str) -> bool:
    """Whether these are rows of everything, in whatever stripe."""
    return scope in _EVERYTHING
