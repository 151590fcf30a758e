"""A scrape is right in the ways that scrapes are usually wrong: first increments, restarts, outages, deadlines."""

from __future__ import annotations

import gzip
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from runmeter.usage import Usage
from runmeter_exporter.scrape import LONGEST_TIMEOUT, Scraper, StoreCollector, _seconds, _takes_gzip
from runmeter_exporter.totals.answers import Scrape, Series

PROMETHEUS = {"X-Prometheus-Scrape-Timeout-Seconds": "10"}
OLD = Series("openai", "old", "lead_agent", "shop")
NEW = Series("openai", "new", "lead_agent", "shop")

Numbers = dict[tuple[str, ...], float]


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Store:
    """A store whose answer a test sets: totals, an error, or none until `go` is set."""

    def __init__(self, scrape: Scrape | None = None) -> None:
        self.answer: Scrape | Exception = scrape or Scrape()
        self.asked = 0
        self.started, self.go = threading.Event(), threading.Event()
        self.go.set()

    def scrape(self, *, include_active: bool = False, largest: int = 100) -> Scrape:
        self.asked += 1
        self.started.set()
        assert self.go.wait(30)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def numbers(body: bytes) -> Numbers:
    """(name, label values in the order of their names) → value."""
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def scraped(scraper: Scraper, include_active: bool = False, **headers: str) -> Numbers:
    """What a Prometheus server gets."""
    query = {"include_active": "true"} if include_active else {}
    return numbers(scraper.handle(query, PROMETHEUS | headers)[1])


def tokens(found: Numbers, model: str, name: str = "runmeter_tokens_total") -> float | None:
    """Input tokens of a model."""
    return found.get((name, "lead_agent", "input", model, "openai", "shop"))


# First increments


def test_what_is_known_at_the_first_scrape_is_shown_as_it_is() -> None:
    """A sidecar that restarts shows old series with their numbers at once: a 0 would read as a reset."""
    store = Store(Scrape(settled={OLD: Usage(500)}))
    assert tokens(scraped(Scraper(store)), "old") == 500


def test_a_new_series_is_scraped_at_zero_first() -> None:
    """The first scrape that shows a new series shows 0, the next its number, so that increase() sees all of it."""
    store, clock = Store(Scrape(settled={OLD: Usage(500)})), Clock()
    scraper = Scraper(store, clock=clock)
    scraped(scraper)
    store.answer = Scrape(settled={OLD: Usage(600), NEW: Usage(70)}, counts={("spans_rejected", "odd"): 3})
    clock.now += 15
    found = scraped(scraper)
    assert (tokens(found, "old"), tokens(found, "new")) == (600, 0)
    assert found["runmeter_spans_rejected_total", "odd"] == 0
    clock.now += 15
    found = scraped(scraper)
    assert (tokens(found, "old"), tokens(found, "new")) == (600, 70)
    assert found["runmeter_spans_rejected_total", "odd"] == 3


def test_a_series_known_while_its_run_is_active_is_not_held_back() -> None:
    """A series that was scraped at 0 while its run worked shows its number as soon as the run closes."""
    store, clock = Store(), Clock()
    scraper = Scraper(store, clock=clock)
    scraped(scraper)
    store.answer = Scrape(settled={NEW: Usage()})
    clock.now += 15
    assert tokens(scraped(scraper), "new") == 0
    store.answer = Scrape(settled={NEW: Usage(70)})
    clock.now += 0.1
    assert tokens(scraped(scraper), "new") == 70


def test_a_second_prometheus_sees_the_zero_too() -> None:
    """A scrape soon after the one that announced a series still shows its 0."""
    store, clock = Store(), Clock()
    scraper = Scraper(store, clock=clock)
    scraped(scraper)
    store.answer = Scrape(settled={NEW: Usage(70)})
    clock.now += 15
    assert tokens(scraped(scraper), "new") == 0
    clock.now += 4.9
    assert tokens(scraped(scraper), "new") == 0
    clock.now += 0.2
    assert tokens(scraped(scraper), "new") == 70


def test_who_is_no_scraper_sees_numbers_at_once() -> None:
    """Without a scrape timeout in its headers a request gets the numbers of REST, and uses up no announcement."""
    store, clock = Store(), Clock()
    scraper = Scraper(store, clock=clock)
    scraped(scraper)
    store.answer = Scrape(settled={NEW: Usage(70)})
    assert tokens(numbers(scraper.handle({}, {})[1]), "new") == 70
    clock.now += 15
    assert tokens(scraped(scraper), "new") == 0


def test_active_gauges_are_never_held_back() -> None:
    """Gauges show what is so, also the first time; only counters have a first increment."""
    store = Store()
    scraper = Scraper(store, clock=Clock())
    scraped(scraper, True)
    store.answer = Scrape(observed={NEW: Usage(70)}, active={NEW: Usage(70)})
    found = scraped(scraper, True)
    assert tokens(found, "new", "runmeter_active_tokens") == 70
    assert tokens(found, "new", "runmeter_observed_tokens_total") == 0


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["old", "new", "third"]),
            st.integers(0, 1000),
            st.sampled_from(["scrape", "scrape", "look", "restart", "outage"]),
            st.sampled_from([0.5, 5.0, 15.0]),
        ),
        max_size=30,
    )
)
def test_counters_never_fall_and_end_at_the_truth(steps: list[tuple[str, int, str, float]]) -> None:
    """However spending, scrapes, restarts and outages follow each other, no series falls, and once it has been quiet
    every series shows the store's number."""
    clock, totals, seen = Clock(), {"old": 10}, {}
    store = Store()
    scraper = Scraper(store, clock=clock)

    def check(found: Numbers) -> None:
        for key, value in found.items():
            if key[0].endswith("_total"):
                assert value >= seen.get(key, 0)
                seen[key] = value

    for model, more, what, seconds in steps:
        totals[model] = totals.get(model, 0) + more
        current = Scrape(settled={OLD._replace(model=name): Usage(count) for name, count in totals.items()})
        store.answer = ConnectionError("away") if what == "outage" else current
        clock.now += seconds
        if what == "restart":
            scraper = Scraper(store, clock=clock)
        if what == "look":
            scraper.handle({}, {})
        else:
            check(scraped(scraper))
    store.answer = Scrape(settled={OLD._replace(model=name): Usage(count) for name, count in totals.items()})
    for _ in range(2):
        clock.now += 15
        found = scraped(scraper)
        check(found)
    assert {name: tokens(found, name) for name in totals} == totals


# Outages and deadlines


def test_the_last_known_totals_outlive_the_store() -> None:
    """While the store fails, a scrape answers with what it said last, `runmeter_store_up 0` and the age of that."""
    store, clock = Store(Scrape(settled={OLD: Usage(500)})), Clock()
    scraper = Scraper(store, clock=clock)
    scraped(scraper)
    store.answer = ConnectionError("gone")
    clock.now += 42
    found = scraped(scraper)
    assert tokens(found, "old") == 500
    assert found["runmeter_store_up",] == 0
    assert found["runmeter_store_age_seconds",] == 42
    store.answer = Scrape(settled={OLD: Usage(501)})
    found = scraped(scraper)
    assert (tokens(found, "old"), found["runmeter_store_up",], found["runmeter_store_age_seconds",]) == (501, 1, 0)


def test_totals_never_known_are_left_out() -> None:
    """A sidecar that starts while the store is away shows no counter at all: a 0 would make the return a spike."""
    store = Store()
    store.answer = ConnectionError("gone")
    found = scraped(Scraper(store), True)
    assert {key[0] for key in found} == {"runmeter_build_info", "runmeter_store_up", "runmeter_scrape_duration_seconds"}
    assert found["runmeter_store_up",] == 0


def test_a_store_that_hangs_costs_the_deadline_and_not_the_answer() -> None:
    """The answer comes within the scrape's timeout; scrapes after it do not wait for the same reading again, nor start
    another; and the answer that comes late is shown by the next scrape."""
    store, clock = Store(Scrape(settled={OLD: Usage(500)})), Clock()
    scraper = Scraper(store, clock=clock)
    scraped(scraper)
    store.go.clear()
    short = {"X-Prometheus-Scrape-Timeout-Seconds": "0.02"}
    assert numbers(scraper.handle({}, short)[1])["runmeter_store_up",] == 0
    clock.now += 30
    for _ in range(3):
        found = scraped(scraper)  # with ten seconds of patience, none of which is used
        assert (found["runmeter_store_up",], tokens(found, "old")) == (0, 500)
    assert store.asked == 2
    [reader] = [thread for thread in threading.enumerate() if thread.name == "runmeter-scrape"]
    store.answer = Scrape(settled={OLD: Usage(600)})
    store.go.set()
    reader.join(30)
    assert tokens(scraped(scraper), "old") == 600


def test_a_process_out_of_threads_shows_what_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no thread can be started the last known totals are served, and the next scrape reads again."""
    store = Store(Scrape(settled={OLD: Usage(500)}))
    scraper = Scraper(store)
    scraped(scraper)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        found = scraped(scraper)
    assert (found["runmeter_store_up",], tokens(found, "old")) == (0, 500)
    store.answer = Scrape(settled={OLD: Usage(501)})
    found = scraped(scraper)
    assert (found["runmeter_store_up",], tokens(found, "old")) == (1, 501)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("10", 10), ("2.5", 2.5), ("1e9", LONGEST_TIMEOUT), ("0", None), ("-3", None), ("nan", None), ("inf", None),
     ("soon", None), ("", None), (None, None)],
)  # fmt: skip
def test_a_timeout_that_is_none_is_not_believed(header: str | None, seconds: float | None) -> None:
    """Only a finite number of seconds above 0 counts, and no more than a minute of it."""
    assert _seconds(header) == seconds


def test_a_collector_says_down_where_the_store_fails() -> None:
    """In a registry of prometheus_client a failing store is `runmeter_store_up 0` and no exception."""
    store, registry = Store(Scrape(threads=3)), CollectorRegistry()
    registry.register(StoreCollector(store))
    assert registry.get_sample_value("runmeter_threads") == 3
    assert registry.get_sample_value("runmeter_store_up") == 1
    store.answer = ConnectionError("gone")
    assert registry.get_sample_value("runmeter_threads") is None
    assert registry.get_sample_value("runmeter_store_up") == 0


# Sharing, formats


def test_scrapes_at_once_share_one_reading_and_one_page() -> None:
    """Eight scrapes during one reading of the store cause no second one and get the same bytes, compressed once."""
    store = Store(Scrape(settled={OLD: Usage(500)}))
    store.go.clear()
    scraper, entered = Scraper(store), threading.Semaphore(0)
    join = scraper._join

    def joined(include_active: bool) -> object:
        flight = join(include_active)
        entered.release()
        return flight

    scraper._join = joined  # type: ignore[method-assign, assignment]
    headers = PROMETHEUS | {"Accept-Encoding": "gzip"}
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(scraper.handle, {}, headers) for _ in range(8)]
        for _ in range(8):
            assert entered.acquire(timeout=30)
        store.go.set()
        bodies = [answer.result(30)[1] for answer in answers]
    assert store.asked == 1
    assert len({id(body) for body in bodies}) == 1
    assert tokens(numbers(gzip.decompress(bodies[0])), "old") == 500


def test_a_scrape_after_another_reads_anew() -> None:
    """Nothing is cached between scrapes that do not overlap."""
    store = Store(Scrape(threads=1))
    scraper = Scraper(store)
    assert scraped(scraper)["runmeter_threads",] == 1
    store.answer = Scrape(threads=2)
    assert scraped(scraper)["runmeter_threads",] == 2


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain;version=0.0.4", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
         "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores"),
        ("application/openmetrics-text;version=banana", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text;;;version==;", None),
        (";;,,=", "text/plain; version=0.0.4; charset=utf-8"),
    ],
)  # fmt: skip
def test_the_format_is_negotiated(accept: str, content_type: str | None) -> None:
    """Prometheus' Accept headers get what they ask for, hostile ones something readable."""
    headers, body = Scraper(Store()).handle({}, {"accept": accept})
    assert content_type is None or headers["Content-Type"] == content_type
    assert body.endswith(b"# EOF\n") == headers["Content-Type"].startswith("application/openmetrics-text")
    assert headers["Vary"] == "Accept, Accept-Encoding"


@pytest.mark.parametrize(
    ("offer", "taken"),
    [("gzip", True), ("deflate, GZIP;q=1.0, *;q=0.5", True), ("gzip;q=0", False), ("gzip; q=0.0", False),
     ("identity", False), ("", False), ("xgzip", False)],
)  # fmt: skip
def test_gzip_is_sent_to_those_who_take_it(offer: str, taken: bool) -> None:
    """Compression follows Accept-Encoding, also where the store is away."""
    assert _takes_gzip(offer) is taken
    store = Store(Scrape(threads=7))
    scraper = Scraper(store)
    for _ in range(2):
        headers, body = scraper.handle({}, {"Accept-Encoding": offer})
        assert (headers.get("Content-Encoding") == "gzip") is taken
        assert b"runmeter_threads 7.0" in (gzip.decompress(body) if taken else body)
        store.answer = ConnectionError("gone")


@pytest.mark.parametrize(("text", "active"), [("true", True), ("1", True), ("False", False), ("0", False), ("", False)])
def test_active_usage_is_shown_on_request(text: str, active: bool) -> None:
    """include_active takes the usual spellings of true and false."""
    _, body = Scraper(Store(Scrape(observed={}, active={}))).handle({"include_active": text}, {})
    assert (b"runmeter_active_tokens" in body) is active


def test_include_active_that_is_neither_is_refused() -> None:
    """A typo is an error that names what was given, not a scrape with half its series."""
    with pytest.raises(ValueError, match="include_active is 'ture'; it must be true or false"):
        Scraper(Store()).handle({"include_active": "ture"}, {})
