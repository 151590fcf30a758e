"""Fixtures for every test; what they are is said where they are."""

from bytecode import only_of_what_stays  # first: it is about what is imported after it
from chaos_kit import nursery
from hypothesis import HealthCheck, settings
from stores import (
    open_stores,
    postgres_server,
    postgres_store_url,
    postgres_template,
    postgres_url,
    sql_url,
    sqlite_url,
    store,
)

# How long examples take is the machine's doing: on a busy one no rule is broken by it.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

__all__ = [
    "nursery", "only_of_what_stays", "open_stores", "postgres_server", "postgres_store_url", "postgres_template",
    "postgres_url", "sql_url", "sqlite_url", "store",
]  # fmt: skip
