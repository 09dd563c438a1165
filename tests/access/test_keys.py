from __future__ import annotations

import hashlib
import re
import string
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.access import keys
from llama_gguf.access.attributes import NO_ATTRIBUTES, Attributes
from llama_gguf.access.keys import Key, KeyRing, Problem
from tests.access.test_attributes import FULL, any_attributes

SECRET = "sk-Zq8vN2xLw5TfR7mB"
OTHER = "sk-another-secret-0"
HEX = hashlib.sha256(SECRET.encode()).hexdigest()
NEW_YEAR = datetime(2027, 1, 1, tzinfo=UTC).timestamp()

LETTERS = string.ascii_letters + string.digits + "_-"
key_ids = st.text(LETTERS, min_size=1, max_size=64)
api_keys = st.text(LETTERS, min_size=16, max_size=128)
rate_limits = st.none() | st.integers(1, keys.MAX_RATE_LIMIT)
expirations = st.none() | st.datetimes(timezones=st.just(UTC)).map(
    lambda moment: moment.replace(microsecond=0).timestamp()
)
noise = st.one_of(
    st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=30),
    st.text(":#$ \t\r-2aA", max_size=30),
    st.sampled_from(["", "# note", "#a:b", "   ", "id:short", f"a b:{SECRET}", "\ufeff# windows"]),
)


def only_key(line: str) -> Key:
    ring = KeyRing.parse(line)
    assert ring.problems == ()
    (key,) = ring.keys
    return key


def only_reason(line: str) -> str:
    ring = KeyRing.parse(line)
    assert len(ring) == 0
    (problem,) = ring.problems
    assert problem.line == 1
    return problem.reason


# One line -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rest", "rate_limit", "expires_at"),
    [
        ("", None, None),
        (":", None, None),
        ("::", None, None),
        (":60", 60, None),
        (":60:", 60, None),
        (":0060", 60, None),
        (":1", 1, None),
        (":1000000000", 1_000_000_000, None),
        (":60:2027-01-01T00:00:00Z", 60, NEW_YEAR),
        (":60:2027-01-01", 60, NEW_YEAR),
        ("::2027-01-01T00:00:00Z", None, NEW_YEAR),
        ("::2027-01-01", None, NEW_YEAR),
        (":2027-01-01", None, NEW_YEAR),
        (":2027-01-01T00:00:00", None, NEW_YEAR),
        (":2027-01-01T00:00:00+00:00", None, NEW_YEAR),
        (":2027-01-01 01:00:00+01:00", None, NEW_YEAR),
        (":60:20270101", 60, NEW_YEAR),
    ],
)
def test_rate_limit_and_expiration_are_each_optional(
    rest: str, rate_limit: int | None, expires_at: float | None
) -> None:
    key = only_key(f"alice:{SECRET}{rest}")

    assert (key.rate_limit, key.expires_at) == (rate_limit, expires_at)


@pytest.mark.parametrize(
    "fields",
    [
        "",
        ":",
        "::",
        ":60",
        ":60:2027-01-01",
        "::2027-01-01 01:00:00+01:00",
        ":2027-01-01",
    ],
)
@pytest.mark.parametrize("space", [" ", "   ", "\t"])
def test_attributes_follow_the_other_fields(fields: str, space: str) -> None:
    without = only_key(f"alice:{SECRET}{fields}")
    key = only_key(f"alice:{SECRET}{fields}{space}weight=4{space}from=2001:db8::/32")

    assert without.attributes == NO_ATTRIBUTES
    assert (key.rate_limit, key.expires_at) == (without.rate_limit, without.expires_at)
    assert keys.format_line("alice", SECRET, attributes=key.attributes) == (
        f"alice:{SECRET} from=2001:db8::/32 weight=4"
    )


def test_digits_in_the_third_field_are_a_rate_limit_even_if_they_look_like_a_date() -> None:
    key = only_key(f"alice:{SECRET}:20270101")

    assert (key.rate_limit, key.expires_at) == (20270101, None)


@pytest.mark.parametrize("line", ["{}\n", "{}\r\n", "  {}\t", "\ufeff{}", "{}"])
def test_white_space_around_a_line_is_ignored(line: str) -> None:
    assert only_key(line.format(f"alice:{SECRET}:7")).rate_limit == 7


@pytest.mark.parametrize("digits", [HEX, HEX.upper()])
def test_a_digest_in_the_file_means_the_same_secret(digits: str) -> None:
    ring = KeyRing.parse(f"alice:sha256${digits}")
    plain = only_key(f"alice:{SECRET}")

    key = ring.look_up(SECRET.encode())

    assert key is not None
    assert key.hashed
    assert not plain.hashed
    assert key.digest == plain.digest


def test_a_digest_from_the_file_is_not_accepted_as_a_secret() -> None:
    ring = KeyRing.parse(f"alice:sha256${HEX}")

    assert ring.look_up(f"sha256${HEX}".encode()) is None
    assert ring.look_up(HEX.encode()) is None
    assert ring.look_up(bytes.fromhex(HEX)) is None


@pytest.mark.parametrize(
    "line", ["", "\n", "   ", "# a comment", "  # alice:" + SECRET, "\r\n", "#"]
)
def test_comments_and_blank_lines_are_neither_keys_nor_problems(line: str) -> None:
    ring = KeyRing.parse(line)

    assert (len(ring), ring.problems) == (0, ())


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("alice", "a line must be key_id:api_key[:rate_limit][:expiration]"),
        (SECRET, "a line must be"),
        (f":{SECRET}", "the key id must be 1 to 64"),
        (f"{'a' * 65}:{SECRET}", "the key id must be"),
        (f"al ice:{SECRET}", "the key id must be"),
        (f"\u00e4lice:{SECRET}", "the key id must be"),
        (f"\u0661:{SECRET}", "the key id must be"),
        ("alice:", "the api key must be 16 to 128"),
        ("alice:" + "x" * 15, "the api key must be"),
        ("alice:" + "x" * 129, "the api key must be"),
        (f"alice: {SECRET}", "the api key must be"),
        (f"alice:{SECRET} # her key", "the api key must be"),
        (f"alice:{SECRET}\u00df", "the api key must be"),
        (f"alice:sha256${HEX[:-1]}", "the api key must be"),
        (f"alice:sha256${HEX}0", "the api key must be"),
        (f"alice:SHA256${HEX}", "the api key must be"),
        (f"alice:{SECRET}\r:60", "the api key must be"),
        (f"alice:{SECRET}:weight=4", "the api key may be followed by"),
        (f"alice:{SECRET}weight=4", "the api key must be"),
        (f"alice weight=4:{SECRET}", "a line must be"),
        (f"alice:{SECRET} weight 4", "the api key must be"),
        (f"alice:{SECRET} weight=4 # hers", "an attribute must be name=value"),
        (f"alice:{SECRET} weight=0", "the attribute weight must be a whole number"),
        (f"alice:{SECRET}:60 {SECRET}=1", "an attribute must be name=value"),
        (f"alice:{SECRET} weight={OTHER}", "the attribute weight must be"),
        (f"alice:{SECRET}:0", "the rate limit must be a whole number from 1 to 1000000000"),
        (f"alice:{SECRET}:1000000001", "the rate limit must be"),
        (f"alice:{SECRET}:{'9' * 5000}", "the rate limit must be"),
        (f"alice:{SECRET}:0:2027-01-01", "the rate limit must be"),
        (f"alice:{SECRET}:60:soon", "the expiration must be ISO 8601, such as 2027-01-31"),
        (f"alice:{SECRET}::soon", "the expiration must be"),
        (f"alice:{SECRET}:60:2027-02-30", "the expiration must be"),
        (f"alice:{SECRET}:-1", "the api key may be followed by"),
        (f"alice:{SECRET}:+1", "the api key may be followed by"),
        (f"alice:{SECRET}:1.5", "the api key may be followed by"),
        (f"alice:{SECRET}:1_0", "the api key may be followed by"),
        (f"alice:{SECRET}:\u0661\u0662", "the api key may be followed by"),
        (f"alice:{SECRET}:2027-01-01:60", "the api key may be followed by"),
        (f"alice:{SECRET}:60/min:2027-01-01", "the api key may be followed by"),
    ],
)
def test_an_invalid_line_is_skipped_with_the_expected_form(line: str, wanted: str) -> None:
    assert only_reason(line).startswith(wanted)


# The ring -----------------------------------------------------------------------------------------


def test_keys_are_in_the_order_of_the_file_and_problems_have_line_numbers() -> None:
    ring = KeyRing.parse(f"# head\n\nzoe:{SECRET}\nbad\r\n\namy:{OTHER}\n?:{OTHER}")

    assert [key.key_id for key in ring.keys] == ["zoe", "amy"]
    assert [problem.line for problem in ring.problems] == [4, 7]
    assert len(ring) == 2


def test_a_key_is_found_only_by_its_secret() -> None:
    ring = KeyRing.parse(f"alice:{SECRET}\nbob:{OTHER}")

    assert ring.look_up(SECRET.encode()) == ring.named("alice")
    assert ring.look_up(OTHER.encode()) == ring.named("bob")
    for presented in (b"", b"alice", SECRET[:-1].encode(), SECRET.encode() + b" ", b"\xff\x00"):
        assert ring.look_up(presented) is None


def test_an_empty_ring_accepts_no_key() -> None:
    assert KeyRing().look_up(b"") is None
    assert KeyRing.parse("").named("") is None


def test_an_expired_key_is_found_so_that_the_error_can_be_key_expired() -> None:
    key = KeyRing.parse(f"alice:{SECRET}:2027-01-01").look_up(SECRET.encode())

    assert key is not None
    assert not key.is_expired(NEW_YEAR - 0.001)
    assert key.is_expired(NEW_YEAR)


def test_a_key_without_expiration_never_expires() -> None:
    assert not only_key(f"alice:{SECRET}").is_expired(1e18)


def test_the_first_of_two_lines_with_the_same_id_is_used() -> None:
    ring = KeyRing.parse(f"alice:{SECRET}\nalice:{OTHER}")

    assert ring.look_up(OTHER.encode()) is None
    assert ring.look_up(SECRET.encode()) is not None
    assert ring.problems == (Problem(2, "the key id is already on line 1, which wins"),)


@pytest.mark.parametrize(
    ("first", "second"),
    [(SECRET, SECRET), (SECRET, f"sha256${HEX}"), (f"sha256${HEX.upper()}", SECRET)],
)
def test_the_first_of_two_lines_with_the_same_secret_is_used(first: str, second: str) -> None:
    ring = KeyRing.parse(f"\nalice:{first}\nbob:{second}")

    assert [key.key_id for key in ring.keys] == ["alice"]
    assert ring.problems == (Problem(3, "the api key is already on line 2, which wins"),)


def test_a_skipped_line_does_not_make_later_lines_duplicates() -> None:
    third = "sk-the-third-secret"
    ring = KeyRing.parse(f"a:{SECRET}\na:{OTHER}\nb:{OTHER}\nc:{SECRET}\nc:{third}")

    assert [key.key_id for key in ring.keys] == ["a", "b", "c"]


@pytest.mark.parametrize("hidden", ["\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x85", "\r"])
def test_no_key_can_be_hidden_in_a_comment_after_an_unusual_line_separator(hidden: str) -> None:
    assert len(KeyRing.parse(f"# note {hidden}evil:{SECRET}\n")) == 0


def test_ten_thousand_keys_are_all_found() -> None:
    text = "".join(f"key-{n}:secret-of-number-{n:06}:{n + 1}\n" for n in range(10_000))
    ring = KeyRing.parse(text)

    assert (len(ring), ring.problems) == (10_000, ())
    for n in (0, 4_999, 9_999):
        key = ring.look_up(f"secret-of-number-{n:06}".encode())
        assert key is not None
        assert key.key_id == f"key-{n}"


@pytest.mark.parametrize("words", ["", f" {FULL}"])
def test_a_large_file_is_parsed_with_a_pause_every_few_lines(words: str) -> None:
    text = "".join(f"key-{n:03}:secret-of-number-{n:06}{words}\n" for n in range(640))
    pauses: list[None] = []
    ring = KeyRing.parse(text, lambda: pauses.append(None))

    line = len(text) // 640
    lines_per_pause = -(-keys.CHARACTERS_PER_PAUSE // line)
    assert (len(ring), len(pauses)) == (640, 640 // lines_per_pause)


def test_a_ring_lists_the_keys_removed_since_the_previous_one() -> None:
    old = KeyRing.parse(f"alice:{SECRET}\nbob:{OTHER}\n")

    assert KeyRing.parse(f"bob-old-0a1b2c:{SECRET}\n").gone_since(old) == ["alice"]
    assert KeyRing().gone_since(old) == ["alice", "bob"]
    assert old.gone_since(KeyRing()) == []


# Old secrets --------------------------------------------------------------------------------------


def test_an_old_secret_belongs_to_the_key_in_its_id() -> None:
    ring = KeyRing.parse(f"alice:{SECRET}:60\nalice-old-0a1b2c:{OTHER}:5:2027-01-01")
    old = ring.look_up(OTHER.encode())

    assert old is not None
    assert (old.key_id, old.line_id, old.is_retired) == ("alice", "alice-old-0a1b2c", True)
    assert ring.named("alice") == ring.look_up(SECRET.encode())
    assert ring.named("alice-old-0a1b2c") is None
    assert len(ring) == 1


def test_a_key_with_only_an_old_secret_is_still_that_key() -> None:
    ring = KeyRing.parse(f"alice-old-0a1b2c:{OTHER}::2027-01-01")

    assert ring.named("alice") == ring.look_up(OTHER.encode())
    assert len(ring) == 1


@pytest.mark.parametrize("first", ["alice", "alice-old-0a1b2c"])
def test_a_key_s_own_line_is_found_at_any_position(first: str) -> None:
    lines = [f"alice:{SECRET}", f"alice-old-0a1b2c:{OTHER}"]
    ring = KeyRing.parse("\n".join(sorted(lines, reverse=first != "alice")))

    assert ring.named("alice") == ring.look_up(SECRET.encode())
    assert [key.line_id for key in ring.secrets_of("alice")] == ["alice", "alice-old-0a1b2c"]


@pytest.mark.parametrize(
    ("line_id", "key_id"),
    [
        ("a" * 64 + "-old-0a1b2c", "a" * 64),
        ("a-old-0a1b2c-old-333333", "a"),
        ("-old-0a1b2c-old-333333", "-old-0a1b2c"),
        ("a-old-0A1B2C", "a-old-0A1B2C"),
        ("a-old-0a1b2", "a-old-0a1b2"),
        ("a-old-0a1b2c-", "a-old-0a1b2c-"),
        ("-old-0a1b2c", "-old-0a1b2c"),
    ],
)
def test_an_id_with_the_suffix_is_that_of_an_old_secret(line_id: str, key_id: str) -> None:
    assert only_key(f"{line_id}:{SECRET}").key_id == key_id


def test_an_old_secret_of_a_key_with_an_overlong_id_is_skipped() -> None:
    assert only_reason("a" * 65 + f"-old-0a1b2c:{SECRET}").startswith("the key id must be")


def test_a_second_old_secret_with_the_same_id_is_skipped() -> None:
    ring = KeyRing.parse(f"a-old-0a1b2c:{SECRET}\na-old-0a1b2c:{OTHER}")

    assert ring.problems == (Problem(2, "the key id is already on line 1, which wins"),)


# Secrets are not revealed -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        f"alice:{SECRET}",
        f"alice:sha256${HEX}",
        f"{SECRET}:alice",
        f"{SECRET}:{SECRET}\n{SECRET}:{OTHER}",
        f"alice:{SECRET}\nbob:{SECRET}",
        f"alice:60:{SECRET}",
        f"alice:{OTHER}:{SECRET}",
        f"alice:{OTHER}:60:{SECRET}",
        f"alice:{SECRET}!",
        SECRET,
        f"alice:{OTHER} weight={SECRET}",
        f"alice:{OTHER} {SECRET}=4",
        f"alice:{OTHER} from={SECRET}",
        f"alice {SECRET}",
    ],
)
def test_no_repr_and_no_problem_shows_a_secret_or_a_digest(line: str) -> None:
    ring = KeyRing.parse(line)
    shown = f"{ring!r} {ring.problems!r} {[key.digest and repr(key) for key in ring.keys]}"
    shown = shown.replace(f"key_id={SECRET!r}", "")  # text in the position of the id is public

    assert SECRET not in shown
    assert HEX not in shown
    assert repr(bytes.fromhex(HEX)) not in shown


@given(st.lists(noise | st.builds("{}:{}:{}".format, key_ids, api_keys, noise), max_size=6))
def test_a_problem_quotes_nothing_of_any_line(lines: list[str]) -> None:
    known = {only_reason(line) for line in BAD_LINES}
    ring = KeyRing.parse("\n".join(lines))

    for problem in ring.problems:
        assert problem.reason in known or problem.reason.startswith(
            ("the key id is already on line ", "the api key is already on line ")
        )


BAD_LINES = (
    "x",
    f"?:{SECRET}",
    "x:short",
    f"x:{SECRET}:0",
    f"x:{SECRET}:1:soon",
    f"x:{SECRET}:soon",
    f"x:{SECRET} y=1",
)


# Writing ------------------------------------------------------------------------------------------


@given(
    key_id=key_ids,
    secret=api_keys,
    rate_limit=rate_limits,
    expires_at=expirations,
    hide=st.booleans(),
    attributes=any_attributes,
)
def test_a_formatted_line_parses_to_the_same_key(
    *,
    key_id: str,
    secret: str,
    rate_limit: int | None,
    expires_at: float | None,
    hide: bool,
    attributes: Attributes,
) -> None:
    stored = keys.hashed(secret) if hide else secret
    line = keys.format_line(
        key_id, stored, rate_limit=rate_limit, expires_at=expires_at, attributes=attributes
    )

    digest = hashlib.sha256(secret.encode()).digest()
    retired = only_key(line).retired_as
    assert only_key(line) == Key(
        only_key(line).key_id, digest, rate_limit, expires_at, hide, retired, attributes
    )
    assert only_key(line).line_id == key_id
    assert KeyRing.parse(line).look_up(secret.encode()) is not None
    assert not (hide and secret in line.removeprefix(key_id))


@pytest.mark.parametrize(
    ("key_id", "api_key", "rate_limit"),
    [
        ("", SECRET, None),
        (" alice", SECRET, None),
        ("alice\n", SECRET, None),
        ("#alice", SECRET, None),
        ("alice", "short", None),
        ("alice", f"{SECRET}:60", None),
        ("alice", f"{SECRET}\nbob:{OTHER}", None),
        ("alice", SECRET, 0),
        ("alice", SECRET, -1),
        ("alice", SECRET, keys.MAX_RATE_LIMIT + 1),
    ],
)
def test_a_line_that_would_not_parse_again_is_not_written(
    key_id: str, api_key: str, rate_limit: int | None
) -> None:
    with pytest.raises(ValueError, match="must be"):
        keys.format_line(key_id, api_key, rate_limit=rate_limit)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "NEW\n"),
        ("# a\n", "# a\nNEW\n"),
        ("# a", "# a\nNEW\n"),
        ("# a\r\n", "# a\r\nNEW\r\n"),
        ("# a\r\n# b", "# a\r\n# b\r\nNEW\r\n"),
        ("\n\n", "\n\nNEW\n"),
    ],
)
def test_a_line_is_appended_with_the_line_end_of_the_file(before: str, after: str) -> None:
    assert keys.add_line(before, "NEW") == after


FILE = f"# ours\n\nalice:{SECRET}:60\r\nbad line\n  bob:{OTHER}\n# end"


def test_removing_a_key_removes_only_its_line() -> None:
    after = keys.replace(FILE, "alice")

    assert after == f"# ours\n\nbad line\n  bob:{OTHER}\n# end"


def test_a_replacement_is_at_the_position_of_the_old_line() -> None:
    after = keys.replace(FILE, "bob", "one", "two")

    assert after == f"# ours\n\nalice:{SECRET}:60\r\nbad line\none\r\ntwo\r\n# end"


@pytest.mark.parametrize("key_id", ["carol", "", "bad line", "# ours"])
def test_an_unknown_id_cannot_be_replaced(key_id: str) -> None:
    with pytest.raises(KeyError):
        keys.replace(FILE, key_id)


@pytest.mark.parametrize(
    "duplicate", [f"bob:{SECRET}", f"bob:sha256${HEX}", f"alice:{OTHER}", f"alice:{SECRET}:60"]
)
def test_a_duplicate_does_not_make_a_removed_key_valid_again(duplicate: str) -> None:
    after = keys.replace(f"alice:{SECRET}:60\n# keep\n{duplicate}\n", "alice")

    assert after == "# keep\n"


OLD = f"alice-old-0a1b2c:{OTHER}::2027-01-01"


@pytest.mark.parametrize("lines", [(f"alice:{SECRET}", OLD), (OLD, f"alice:{SECRET}"), (OLD,)])
def test_removing_a_key_removes_its_old_secrets(lines: tuple[str, ...]) -> None:
    after = keys.replace("\n".join([*lines, "# keep\n"]), "alice")

    assert after == "# keep\n"


def test_an_old_secret_can_be_removed_alone() -> None:
    after = keys.replace(f"alice:{SECRET}\n{OLD}\n", "alice-old-0a1b2c")

    assert after == f"alice:{SECRET}\n"


def test_a_replacement_removes_old_secrets_and_is_at_the_position_of_the_key() -> None:
    after = keys.replace(f"{OLD}\n# keep\nalice:{SECRET}\nbob:{SECRET}x\n", "alice", "new")

    assert after == f"# keep\nnew\nbob:{SECRET}x\n"


def test_a_duplicate_of_an_old_secret_does_not_make_a_removed_key_valid_again() -> None:
    after = keys.replace(f"alice:{SECRET}\n{OLD}\nbob:{OTHER}\n{OLD}\n# keep\n", "alice")

    assert after == "# keep\n"


def test_only_expired_old_secrets_are_cleaned_up() -> None:
    lines = ["# ours", f"alice:{SECRET}::2027-01-01", "nonsense", OLD, f"bob-old-0a1b2c:{OTHER}x"]
    text = "\n".join(lines)

    assert keys.without_ended(text, NEW_YEAR - 1) == text
    assert keys.without_ended(text, NEW_YEAR) == text.replace(OLD + "\n", "")


@pytest.mark.parametrize("hidden", [f"bob:{OTHER}", f"alice-old-0a1b2c:{SECRET}"])
def test_a_clean_up_makes_no_skipped_line_valid(hidden: str) -> None:
    text = f"{OLD}\n{hidden}\n"

    assert keys.without_ended(text, NEW_YEAR) == text


key_lines = st.builds(
    lambda key_id, secret, rate, expiry, attributes: keys.format_line(
        key_id, secret, rate_limit=rate, expires_at=expiry, attributes=attributes
    ),
    key_ids,
    api_keys,
    rate_limits,
    expirations,
    any_attributes,
)
files = st.lists(noise | key_lines, max_size=12).map("\n".join)


@given(files, key_lines)
def test_adding_a_key_keeps_every_byte_of_the_file(text: str, line: str) -> None:
    after = keys.add_line(text, line)

    assert after.startswith(text)
    assert after[len(text) :].strip() == line


@given(files, st.data())
def test_removing_a_key_keeps_every_other_key(text: str, data: st.DataObject) -> None:
    before = KeyRing.parse(text)
    if not before.keys:
        return
    gone = data.draw(st.sampled_from(before.keys))
    after = KeyRing.parse(keys.replace(text, gone.key_id))

    assert after.keys == tuple(key for key in before.keys if key != gone)


@given(files, st.data())
def test_removing_a_key_removes_only_lines_with_its_id_or_its_secret(
    text: str, data: st.DataObject
) -> None:
    before = KeyRing.parse(text)
    if not before.keys:
        return
    gone = data.draw(st.sampled_from(before.keys))
    left = iter(with_ends(keys.replace(text, gone.key_id)))
    waiting = next(left, None)
    for line in with_ends(text):
        if line == waiting:
            waiting = next(left, None)
            continue
        key = only_key(line)
        assert key.key_id == gone.key_id or key.digest == gone.digest
    assert waiting is None


def with_ends(text: str) -> list[str]:
    return [part for part in re.split(r"(?<=\n)", text) if part]


@given(files, key_lines, st.data())
def test_replacing_a_key_changes_nothing_else(text: str, line: str, data: st.DataObject) -> None:
    before = KeyRing.parse(text)
    if not before.keys:
        return
    old = data.draw(st.sampled_from(before.keys))
    new = only_key(line)
    if any(new.key_id == k.key_id or new.digest == k.digest for k in before.keys if k != old):
        return
    after = KeyRing.parse(keys.replace(text, old.key_id, line))

    assert after.keys == tuple(new if key == old else key for key in before.keys)


@given(files)
def test_digests_instead_of_secrets_change_no_key(text: str) -> None:
    before = KeyRing.parse(text)
    after, changed = keys.hash_secrets(text)

    assert KeyRing.parse(after).keys == tuple(key._replace(hashed=True) for key in before.keys)
    assert changed >= sum(not key.hashed for key in before.keys)
