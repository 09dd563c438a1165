from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.access.moments import format_moment, parse_duration, parse_moment

NOW = datetime(2026, 5, 1, 12, 0, 0, 250_000, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("2027-01-31", "2027-01-31T00:00:00Z"),
        ("2027-01-31T12:30:00Z", "2027-01-31T12:30:00Z"),
        ("2027-01-31T12:30:00", "2027-01-31T12:30:00Z"),
        ("2027-01-31 12:30", "2027-01-31T12:30:00Z"),
        ("2027-01-31T12:30:00+02:00", "2027-01-31T10:30:00Z"),
        ("2027-01-31T12:30:00.999999Z", "2027-01-31T12:30:00Z"),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59Z"),
        ("0001-01-01", "0001-01-01T00:00:00Z"),
    ],
)
def test_no_zone_means_utc_and_a_date_alone_means_its_start(text: str, written: str) -> None:
    assert format_moment(parse_moment(text)) == written


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tomorrow",
        "2027-13-01",
        "2027-02-30",
        "2027",
        "2027-01-31T25:00",
        "9999-12-31T23:59:59-01:00",
        "0001-01-01T00:00:00+01:00",
        "\uff12\uff10\uff12\uff17-01-01",
        "2027-01-31\n",
        "2027-01-31" + "0" * 100,
    ],
)
def test_an_invalid_moment_is_rejected_without_quoting_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"^ISO 8601, such as 2027-01-31 or 2027-01-31T12:00:00Z$"):
        parse_moment(text)


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_rejected(text: str) -> None:
    try:
        moment = parse_moment(text)
    except ValueError:
        return
    assert parse_moment(format_moment(moment)) == moment


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_formatted_moment_parses_to_the_same_second(moment: datetime) -> None:
    whole = moment.replace(microsecond=0).timestamp()

    assert parse_moment(format_moment(whole)) == whole


@pytest.mark.parametrize(
    ("text", "ahead"),
    [
        ("30d", timedelta(days=30)),
        ("24h", timedelta(hours=24)),
        ("60m", timedelta(minutes=60)),
        ("007d", timedelta(days=7)),
        ("2026-05-02T12:00:00Z", timedelta(days=1)),
    ],
)
def test_a_duration_counts_from_now_in_whole_seconds(text: str, ahead: timedelta) -> None:
    assert parse_duration(text, NOW) == int(NOW) + ahead.total_seconds()


def test_a_duration_may_reach_the_end_of_the_year_9999_and_no_further() -> None:
    end = datetime(9999, 12, 31, 23, 59, tzinfo=UTC).timestamp()

    assert format_moment(parse_duration("1m", end - 1)) == "9999-12-31T23:59:59Z"
    with pytest.raises(ValueError, match="use the form"):
        parse_duration("1m", end)


@pytest.mark.parametrize(
    "text",
    [
        *("", "30", "d", "soon", "1.5d", "-1d", "+1d", "1 d", "1D", "1w", "30d ", "\u0663d"),
        *("999999999d", "9" * 5000 + "d"),
    ],
)
def test_an_invalid_duration_is_rejected_with_the_expected_form(text: str) -> None:
    with pytest.raises(ValueError, match=r"^use the form 30d, 24h, 60m, 2027-01-31 or"):
        parse_duration(text, NOW)


@pytest.mark.parametrize("text", ["0d", "0m", "2026-05-01", "2020-01-01", "2026-05-01T12:00:00Z"])
def test_a_moment_that_is_not_in_the_future_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"^it must be in the future"):
        parse_duration(text, NOW)
