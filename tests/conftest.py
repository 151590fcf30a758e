"""Fixtures for every test; what they are is said where they are."""

from chaos_kit import nursery
from stores import open_stores, postgres_server, postgres_url, sql_url, sqlite_url, store

__all__ = ["nursery", "open_stores", "postgres_server", "postgres_url", "sql_url", "sqlite_url", "store"]
