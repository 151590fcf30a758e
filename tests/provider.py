"""The loopback model provider for tests: the one the demo ships, under the name tests import."""

from runmeter_exporter.demo.provider import Entry, Provider, decodable

__all__ = ["Entry", "Provider", "decodable"]
