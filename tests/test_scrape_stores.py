"""Scrapes of real stores: sums equal REST, nothing falls through restarts, prunes and orphans, caps are exact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from runmeter.usage import Usage
from runmeter_exporter.scrape import Scraper
from runmeter_exporter.store import RunStore, open_store
from runmeter_exporter.totals.run import CellKey, RunSnapshot

SECOND = 10**9
DAY = "2026-11-22"
PROMETHEUS = {"X-Prometheus-Scrape-Timeout-Seconds": "10"}

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(scraper: Scraper, **headers: str) -> Samples:
    """All samples of a scrape with active runs."""
    _, body = scraper.handle({"include_active": "true"}, headers)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def total(samples: Samples, name: str) -> float:
    """`sum(name)`."""
    return sum(value for (of, _), value in samples.items() if of == name)


class Writer:
    """One source of one run whose usage only grows."""

    def __init__(self, store: RunStore, run_id: str, number: int) -> None:
        self.store, self.run_id, self.source = store, run_id, f"source-{run_id}"
        self.thread_id = f"thread-{number % 3}" if number % 4 else None
        self.revision, self.cells = 0, dict[CellKey, Usage]()

    def write(self, model: str, tokens: int, final: bool = False, status: str = "running") -> None:
        """Spend, and say so."""
        key = CellKey(DAY, "openai", model, "lead_agent")
        self.cells[key] = self.cells.get(key, Usage()) + Usage(
            tokens, tokens // 3, calls=1, messages=1, cost_nanousd=tokens
        )
        self.revision += 1
        self.store.write([
            RunSnapshot(
                run_id=self.run_id, source=self.source, revision=self.revision, final=final, status=status,
                thread_id=self.thread_id, service="shop", started_at=SECOND, updated_at=self.revision * SECOND,
                ended_at=self.revision * SECOND if final else None, usage_by=dict(self.cells),
            )
        ])  # fmt: skip


STEPS = st.lists(
    st.tuples(
        st.integers(0, 9),
        st.sampled_from(["gpt-5", "gpt-5-mini", "claude"]),
        st.integers(0, 500),
        st.sampled_from(["spend", "spend", "spend", "end", "fail", "orphan", "supervise", "prune", "restart"]),
    ),
    min_size=1,
    max_size=25,
)


def live_through(store: RunStore, steps: list[tuple[int, str, int, str]]) -> None:
    """Do the steps, and after each of them scrape two sidecars and hold them to what REST says."""
    writers = {number: Writer(store, f"run-{number}", number) for number in range(10)}
    sidecars = [Scraper(store, largest=2), Scraper(store, largest=2)]
    seen: list[Samples] = [{}, {}]
    for number, model, tokens, what in steps:
        writer = writers[number]
        match what:
            case "spend":
                writer.write(model, tokens)
            case "end":
                writer.write(model, tokens, final=True, status="success")
            case "fail":
                writer.write(model, tokens, final=True, status="error")
            case "orphan":
                store.orphan(writer.source)
            case "supervise":
                store.end_run(writer.run_id, "timeout")
            case "prune":
                store.prune(3 * SECOND)
            case "restart":
                sidecars[number % 2] = Scraper(store, largest=2)
        rest, with_active = store.usage(), store.usage(include_active=True)
        for place, sidecar in enumerate(sidecars):
            found = read(sidecar)
            assert total(found, "runmeter_tokens_total") == rest["total_tokens"]
            assert total(found, "runmeter_llm_calls_total") == rest["llm_call_count"]
            assert total(found, "runmeter_runs_total") == rest["total_runs"]
            assert total(found, "runmeter_cost_usd_total") == pytest.approx(rest["cost_usd"] or 0)
            active = with_active["active"]["total_tokens"]
            assert total(found, "runmeter_active_tokens") == active
            assert total(found, "runmeter_active_run_tokens") == active
            assert total(found, "runmeter_observed_tokens_total") >= with_active["total_tokens"]
            scraped = read(sidecar, **PROMETHEUS)
            for samples in (found, scraped):
                assert len({labels for (name, labels) in samples if name == "runmeter_active_run_tokens"}) <= 2 * 3
            for key, value in scraped.items():
                if key[0].endswith("_total"):
                    assert value >= seen[place].get(key, 0), (what, key)
                    seen[place][key] = value


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(STEPS)
def test_sums_equal_rest_and_nothing_falls(steps: list[tuple[int, str, int, str]]) -> None:
    """Whatever happens to runs, sidecars and history, each sidecar's sums equal REST and no counter of it falls."""
    live_through(open_store("memory://"), steps)


def test_nothing_falls_on_disk_either(store: RunStore) -> None:
    """The same through one long life with everything in it, on every store."""
    whats = ["spend", "spend", "orphan", "spend", "end", "restart", "supervise", "prune", "fail", "spend", "end"]
    models = ["gpt-5", "gpt-5-mini", "claude", "gpt-5"]
    live_through(store, [(n * 7 % 10, models[n % 4], n * 13 % 400, whats[n % 11]) for n in range(66)])


def test_values_beyond_the_cap_are_other_and_sums_stay_exact(store: RunStore) -> None:
    """Far more models than label values are granted: series stay bounded, the sum is REST's, and what `increase()` adds
    up over all series since the first scrape is what was spent since then."""
    now = 0.0
    scraper = Scraper(store, clock=lambda: now)
    first, last, increases = Samples(), Samples(), Counter[str]()

    def scrape() -> None:
        nonlocal last, now
        now += 15
        found = read(scraper, **PROMETHEUS)
        for key, value in found.items():
            if key[0] == "runmeter_tokens_total" and key in last:
                increases[dict(key[1])["model"]] += int(value - last[key])
        last = found

    scrape()
    first = last
    for number in range(150):
        Writer(store, f"run-{number}", number).write(f"model-{number}", 100, final=True, status="success")
        if number % 10 == 0:
            scrape()
    scrape()
    scrape()
    assert total(first, "runmeter_tokens_total") == 0
    spent = store.usage()["total_tokens"]
    assert spent == 150 * 133
    assert total(last, "runmeter_tokens_total") == spent
    assert sum(increases.values()) == spent
    assert increases["other"] > 0
    models = {dict(labels)["model"] for name, labels in last if name == "runmeter_tokens_total"}
    assert "other" in models
    assert len(models) <= 101


def test_a_series_is_known_as_soon_as_its_run_is(store: RunStore) -> None:
    """The settled series of a run that still works stand at 0, so that its end is an increase and not a beginning."""
    writer = Writer(store, "run", 1)
    writer.write("gpt-5", 300)
    labels = {"caller": "lead_agent", "direction": "input", "model": "gpt-5", "provider": "openai", "service": "shop"}
    key = ("runmeter_tokens_total", tuple(sorted(labels.items())))
    assert read(Scraper(store))[key] == 0
    writer.write("gpt-5", 1, final=True, status="success")
    assert read(Scraper(store))[key] == 301


def test_observed_totals_are_kept_in_the_store(store: RunStore) -> None:
    """What one sidecar has observed of a run that still works, another one shows at its first scrape."""
    Writer(store, "run", 1).write("gpt-5", 300)
    assert total(read(Scraper(store)), "runmeter_observed_tokens_total") == 400
    store.orphan("source-run")
    assert total(read(Scraper(store)), "runmeter_observed_tokens_total") == 400


@pytest.mark.parametrize("sql_url", ["sqlite", "postgresql"], indirect=True)
def test_observed_totals_are_right_for_labels_granted_elsewhere(
    sql_url: str, open_stores: Callable[..., RunStore]
) -> None:
    """A sidecar that has been scraped before an agent brings a new model shows its active usage under that model, and
    what it has observed is what was spent, not more."""
    agent, sidecar = open_stores(sql_url), Scraper(open_stores(sql_url))
    read(sidecar)
    writer = Writer(agent, "run", 1)
    writer.write("gpt-5", 300)
    found = read(sidecar)
    models = {
        dict(labels)["model"]: value for (name, labels), value in found.items() if name == "runmeter_active_tokens"
    }
    assert set(models) == {"gpt-5", "other"}
    assert models["other"] == 0
    writer.write("gpt-5", 0, final=True, status="success")
    assert total(read(sidecar), "runmeter_observed_tokens_total") == 400
