"""`/metrics` to the letter: dashboards and alerts are written against its names, labels and formats."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as text_string_to_metric_families_0_0_4

from runmeter.usage import Usage
from runmeter_exporter.scrape import Scraper
from runmeter_exporter.totals.answers import ActiveRun, Scrape, Series

EXPECTED = Path(__file__).parent / "exposition"
SECOND = 10**9
NOVEMBER = 1_795_000_000 * SECOND

LEAD = Series("openai", "gpt-5-mini", "lead_agent", "shop")
HELPER = Series("anthropic", 'claude "4"\nopus\\', "subagent", "")
CALL = Usage(1000, 200, 400, 10, 50, 3, 1, 0, 3, 1_250_000, 0)
UNPRICED = Usage(70, 7, calls=2, calls_without_usage=1, messages=2, unpriced_tokens=77)

FULL = Scrape(
    settled={LEAD: CALL, HELPER: UNPRICED},
    runs={"success": 3, "interrupted": 1},
    revised={("interrupted", "success"): 1},
    orphaned=1,
    threads=2,
    active_runs=3,
    oldest_active_started_at=NOVEMBER,
    set_aside={"repeat": 5},
    counts={
        ("ingest_requests", "200"): 9,
        ("ingest_requests", "503"): 1,
        ("ingest_ignored", "logs"): 3,
        ("ingest_spans", ""): 120,
        ("overflowed", "tags"): 1,
        ("snapshots_dropped", "rejected"): 2,
        ("spans_rejected", "rejected_value"): 6,
        ("something_new", "odd"): 8,
    },
    observed={LEAD: CALL + CALL, HELPER: UNPRICED},
    active={LEAD: CALL},
    largest=(
        ActiveRun("r1", "t/1", Usage(600, 100, cost_nanousd=750_000_000), NOVEMBER, NOVEMBER + 5 * SECOND),
        ActiveRun("r2", None, Usage(300, 60), NOVEMBER, NOVEMBER + 6 * SECOND),
    ),
    rest=Usage(100, 40),
    rest_updated_at=NOVEMBER + 1 * SECOND,
    threads_largest={"t/1": Usage(5000, 900)},
    threads_rest=Usage(10, 1),
)


class Fixed:
    """A store that always says the same, or nothing."""

    def __init__(self, scrape: Scrape | None) -> None:
        self.scrape_ = scrape

    def scrape(self, *, include_active: bool = False, largest: int = 100) -> Scrape:
        if self.scrape_ is None:
            raise ConnectionError("gone")
        return self.scrape_


def page(scrape: Scrape | None, query: Mapping[str, str], headers: Mapping[str, str]) -> str:
    _, body = Scraper(Fixed(scrape), clock=lambda: 7.0).handle(query, headers)
    return body.decode()


@pytest.mark.parametrize(
    ("name", "scrape", "query", "headers"),
    [
        ("default.txt", FULL, {}, {}),
        ("active.txt", FULL, {"include_active": "true"}, {}),
        ("empty.txt", Scrape(observed={}, active={}), {"include_active": "true"}, {}),
        ("never-known.txt", None, {"include_active": "true"}, {}),
        ("openmetrics.txt", FULL, {}, {"Accept": "application/openmetrics-text;version=1.0.0"}),
    ],
)
def test_the_exposition_is_exactly_this(
    name: str, scrape: Scrape | None, query: Mapping[str, str], headers: Mapping[str, str]
) -> None:
    """Each page equals the text in tests/exposition/, line by line."""
    expected = (EXPECTED / name).read_text("utf-8").replace("VERSION", version("runmeter"))
    assert page(scrape, query, headers).splitlines() == expected.splitlines()


def test_openmetrics_is_parsed_by_its_own_parser() -> None:
    """The strict parser of the format takes the page, and finds the counters under their names."""
    text = page(FULL, {"include_active": "true"}, {"Accept": "application/openmetrics-text;version=1.0.0"})
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["runmeter_tokens"].type == "counter"
    assert {sample.name for sample in families["runmeter_tokens"].samples} == {"runmeter_tokens_total"}


def test_no_family_appears_or_vanishes_with_the_data() -> None:
    """A store without a single run shows the families that a busy one shows, so that no query is without its metric."""

    def names(scrape: Scrape) -> set[str]:
        text = page(scrape, {"include_active": "true"}, {})
        return {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}

    assert names(FULL) - names(Scrape(observed={}, active={})) == {"runmeter_losses_total"}


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30))
def test_any_label_value_comes_back_as_it_was(text: str) -> None:
    """Whatever a model calls itself, the page stays one that parses, and says the name unchanged."""
    body = page(Scrape(settled={LEAD._replace(model=text): CALL}), {}, {})
    found = [
        sample.labels["model"]
        for family in text_string_to_metric_families_0_0_4(body)
        for sample in family.samples
        if sample.name == "runmeter_llm_calls_total" and sample.value == 3
    ]
    assert found == [text]


def test_ids_are_no_labels_by_default() -> None:
    """Without include_active no run and no thread is named."""
    text = page(FULL, {}, {})
    assert "run_id" not in text
    assert "thread_id" not in text


def test_a_run_called_other_is_added_to_the_rest() -> None:
    """An id that is literally `other` makes no second series, which would cost Prometheus the whole scrape."""
    scrape = Scrape(
        largest=(ActiveRun("other", "other", Usage(5, 1), 0, 9 * SECOND),),
        rest=Usage(10, 2),
        rest_updated_at=4 * SECOND,
    )
    lines = page(scrape, {"include_active": "true"}, {}).splitlines()
    assert 'runmeter_active_run_tokens{direction="input",run_id="other",thread_id="other"} 15.0' in lines
    assert 'runmeter_active_run_updated_timestamp_seconds{run_id="other",thread_id="other"} 4.0' in lines
    assert len({line.rsplit(" ", 1)[0] for line in lines}) == len(lines)
