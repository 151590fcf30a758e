"""Fixtures for every test; what they are is said where they are."""

from stores import open_stores, postgres_server, postgres_url, sql_url, sqlite_url, store

__all__ = ["open_stores", "postgres_server", "postgres_url", "sql_url", "sqlite_url", "store"]
