"""Fixtures for every test; what they are is said where they are."""

from bytecode import only_of_what_stays  # first: it is about what is imported after it
from chaos_kit import nursery
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

__all__ = [
    "nursery", "only_of_what_stays", "open_stores", "postgres_server", "postgres_store_url", "postgres_template",
    "postgres_url", "sql_url", "sqlite_url", "store",
]  # fmt: skip
