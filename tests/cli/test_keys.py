from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from llama_gguf.access import keys
from llama_gguf.access.budget_ledger import BudgetLedger
from llama_gguf.access.keys import Key, KeyRing
from llama_gguf.access.moments import format_moment
from llama_gguf.cli import key_views
from llama_gguf.cli.main import main
from tests.access.test_attributes import FULL

SECRET = "sk-Zq8vN2xLw5TfR7mB"
OTHER = "sk-another-secret-0"
TAKEN_UP = "A running gateway applies this within three seconds.\n"
NEVER = datetime(9999, 12, 31, tzinfo=UTC).timestamp()

NO_LIMITS: dict[str, object] = {
    "tokens_per_minute": None,
    "tokens_per_day": None,
    "tokens_per_month": None,
    "engine_seconds_per_day": None,
    "routes": [],
    "from": [],
    "weight": 1,
    "priority": "normal",
}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "api_keys.txt"


@pytest.fixture
def run(path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs ``llama-gguf keys ...`` on *path*: the exit status, and the output."""

    def run(*argv: str) -> tuple[int, str, str]:
        status = main(["keys", *argv], environ={"AUTH_KEYS_FILE": str(path)})
        return status, *capsys.readouterr()

    return run


def ring_of(path: Path) -> KeyRing:
    return KeyRing.parse(path.read_text())


def key_of(path: Path, secret: str) -> Key:
    key = ring_of(path).look_up(secret.encode())
    assert key is not None
    return key


def days_left(key: Key) -> float:
    assert key.expires_at is not None
    return (key.expires_at - datetime.now(UTC).timestamp()) / 86400


# generate -----------------------------------------------------------------------------------------


def test_a_generated_key_is_shown_once_on_a_separate_line_and_is_valid(
    run: Run, path: Path
) -> None:
    status, out, err = run("generate", "--name", "alice")

    (secret,) = [line for line in out.splitlines() if line.startswith("sk-")]
    assert status == 0
    assert len(secret) == 46
    assert key_of(path, secret) == ring_of(path).named("alice")
    assert f"It is stored in {path}.\n" in out
    assert err == TAKEN_UP


def test_the_id_of_a_new_key_may_be_an_argument(run: Run, path: Path) -> None:
    assert run("generate", "alice")[0] == 0
    assert run("generate", "bob", "--name", "bob")[0] == 0
    assert [key.key_id for key in ring_of(path).keys] == ["alice", "bob"]


def test_two_ids_for_one_key_are_rejected(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environ = {"AUTH_KEYS_FILE": str(path)}

    assert main(["keys", "generate", "alice", "--name", "bob"], environ) == 2
    assert "specify one id" in capsys.readouterr().err
    assert not path.exists()


@pytest.mark.parametrize("add", ["create", "add"])
@pytest.mark.parametrize("remove", ["delete", "revoke", "rm"])
def test_actions_have_the_names_of_other_programs_too(
    run: Run, path: Path, add: str, remove: str
) -> None:
    assert run(add, "alice")[0] == 0
    assert "alice" in run("ls")[1]
    assert run(remove, "alice")[0] == 0
    assert not ring_of(path).keys


def test_a_new_file_begins_with_the_format_and_is_private(run: Run, path: Path) -> None:
    run("generate")

    assert path.read_text().startswith("# key_id:api_key[")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_without_a_name_gets_one(run: Run, path: Path) -> None:
    run("generate")
    run("generate")

    names = [key.key_id for key in ring_of(path).keys]
    assert len(set(names)) == 2
    assert all(len(name) == 10 and name.startswith("key-") for name in names)


def test_a_key_is_created_with_limit_and_expiration(run: Run, path: Path) -> None:
    _, out, _ = run("generate", "--name", "a", "--rate-limit", "60", "--expires", "30d")

    (key,) = ring_of(path).keys
    assert key.rate_limit == 60
    assert 29.9 < days_left(key) <= 30
    assert out.startswith("Key a, 60 requests per minute, expires 2")
    assert "(in 30 days):" in out


def test_an_expiration_may_be_a_date(run: Run, path: Path) -> None:
    run("generate", "--expires", "9999-12-31")

    assert ring_of(path).keys[0].expires_at == NEVER


def test_a_hashed_key_is_valid_and_its_secret_is_not_in_the_file(run: Run, path: Path) -> None:
    _, out, _ = run("generate", "--hashed")

    (secret,) = [line for line in out.splitlines() if line.startswith("sk-")]
    assert key_of(path, secret).hashed
    assert secret not in path.read_text()
    assert f"Copy it now; it cannot be shown again: {path} contains only its digest.\n" in out


@pytest.mark.parametrize("action", ["generate", "rotate"])
def test_quiet_prints_only_the_key(run: Run, path: Path, action: str) -> None:
    path.write_text(f"alice:{SECRET}\n")

    status, out, err = run(action, "--quiet", *(["alice"] if action == "rotate" else []))

    assert (status, err) == (0, "")
    assert ring_of(path).look_up(out.removesuffix("\n").encode()) is not None


def test_json_has_the_key_and_its_settings(run: Run, path: Path) -> None:
    argv = ("--name", "a", "--rate-limit", "7", "--expires", "9999-12-31T00:00:00Z", "--hashed")
    _, out, err = run("generate", "--json", *argv)

    made = json.loads(out)
    assert key_of(path, made.pop("key")).key_id == "a"
    assert made == {
        "id": "a",
        "old_secret_of": None,
        "rate_limit": 7,
        "expires_at": "9999-12-31T00:00:00Z",
        "expired": False,
        "hashed": True,
        **NO_LIMITS,
        "file": str(path),
    }
    assert err == TAKEN_UP


def test_a_key_is_appended_to_the_file(run: Run, path: Path) -> None:
    before = f"# ours\r\n\r\nalice:{SECRET}\r\nnonsense\r\n# end"
    path.write_bytes(before.encode())

    run("generate", "--name", "bob")

    added = path.read_bytes().decode().removeprefix(before)
    assert added.startswith("\r\nbob:sk-")
    assert added.endswith("\r\n")


def test_the_file_flag_takes_precedence_over_the_setting(
    run: Run, path: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"

    run("generate", "--file", str(other))

    assert len(ring_of(other)) == 1
    assert not path.exists()


def test_the_default_file_is_in_the_data_dir(tmp_path: Path) -> None:
    main(["keys", "--data-dir", str(tmp_path), "generate", "--name", "alice"], environ={})

    assert ring_of(tmp_path / "api_keys.txt").named("alice")


def test_a_name_in_use_is_rejected(run: Run, path: Path) -> None:
    path.write_text(f"alice:{SECRET}\n")

    status, out, err = run("generate", "--name", "alice")

    assert (status, out) == (1, "")
    assert err == (
        f"llama-gguf: {path} already has a key alice; use another name, "
        f"or replace its secret with: llama-gguf keys rotate alice --file {path}\n"
    )
    assert path.read_text() == f"alice:{SECRET}\n"


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (("--name", "a b"), "cannot create the key 'a b': the key id must be 1 to 64"),
        (("--name", ""), "cannot create the key '': the key id must be"),
        (("--name", "a" * 65), "the key id must be"),
        (("--name", "\u00e4"), r"cannot create the key '\xe4'"),
        (("--rate-limit", "0"), "--rate-limit '0' is invalid: the rate limit must be a whole"),
        (("--rate-limit", "-5"), "--rate-limit '-5' is invalid"),
        (("--rate-limit", "ten"), "--rate-limit 'ten' is invalid"),
        (("--rate-limit", "1000000001"), "is invalid: the rate limit must be"),
        (("--expires", "30"), "--expires '30' is invalid: use the form 30d, 24h, 60m"),
        (("--expires", "0d"), "--expires '0d' is invalid: it must be in the future"),
        (("--expires", "2001-01-01"), "is invalid: it must be in the future"),
    ],
)
def test_an_invalid_argument_exits_with_2_and_the_expected_format(
    run: Run, path: Path, argv: tuple[str, ...], why: str
) -> None:
    status, out, err = run("generate", *argv)

    assert (status, out) == (2, "")
    assert err.startswith("llama-gguf: ")
    assert why in err
    assert not path.exists()


@pytest.mark.parametrize(
    "argv", [[], ["burn"], ["remove"], ["rotate"], ["generate", "--quiet", "--json"]]
)
def test_an_incomplete_command_shows_the_usage(run: Run, argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*argv)

    assert caught.value.code == 2


def test_an_unwritable_file_is_an_error_without_traceback(run: Run, path: Path) -> None:
    path.write_text("")

    status, out, err = run("generate", "--file", f"{path}/below")

    assert (status, out) == (1, "")
    assert err.startswith(f"llama-gguf: cannot write the keys file {path}/below: Not a directory\n")


# set ----------------------------------------------------------------------------------------------

ALL_FLAGS = (
    *("--tokens-per-minute", "10k", "--tokens-per-day", "2M", "--tokens-per-month", "50M"),
    *("--engine-seconds-per-day", "3600", "--routes", "embeddings,chat"),
    *("--from", "10.0.0.0/8,2001:db8::/32", "--weight", "4", "--priority", "low"),
)


def test_a_key_is_created_with_all_attributes(run: Run, path: Path) -> None:
    _, out, _ = run("generate", "--name", "a", *ALL_FLAGS)

    assert path.read_text().splitlines()[-1].endswith(f" {FULL}")
    assert out.startswith(f"Key a, {FULL.replace(' ', ', ')}:\n")


def test_a_limit_is_changed_without_a_new_secret(run: Run, path: Path) -> None:
    path.write_text(f"# ours\r\nalice:{SECRET}:60 weight=4\r\nbob:{OTHER}\r\n", newline="")

    status, out, err = run("set", "alice", "--tokens-per-day", "2M", "--from", "10.0.0.0/8")

    assert path.read_bytes().decode() == (
        f"# ours\r\nalice:{SECRET}:60 tokens_per_day=2000000 from=10.0.0.0/8 weight=4\r\n"
        f"bob:{OTHER}\r\n"
    )
    assert (status, err) == (0, TAKEN_UP)
    assert out == (
        "Key alice, 60 requests per minute, tokens_per_day=2000000, from=10.0.0.0/8, weight=4.\n"
        f"Changed in {path}.\n"
    )


def test_a_limit_of_a_digest_is_changed(run: Run, path: Path) -> None:
    path.write_text(f"alice:{keys.hashed(SECRET)}\n")

    _, out, _ = run("set", "alice", "--rate-limit", "10k", "--expires", "9999-12-31", "--json")

    assert path.read_text() == f"alice:{keys.hashed(SECRET)}:10000:9999-12-31T00:00:00Z\n"
    assert json.loads(out)["rate_limit"] == 10_000


def test_none_stands_for_the_default(run: Run, path: Path) -> None:
    path.write_text(f"alice:{SECRET}:60:9999-12-31 {FULL}\n")
    flags = [flag for flag in ALL_FLAGS if flag.startswith("--")]

    run("set", "alice", *(word for flag in flags for word in (flag, "none")))
    assert path.read_text() == f"alice:{SECRET}:60:9999-12-31T00:00:00Z\n"
    run("set", "alice", "--rate-limit", "none", "--expires", "none")

    assert path.read_text() == f"alice:{SECRET}\n"


def test_changes_apply_to_the_old_secrets_of_a_key(run: Run, path: Path) -> None:
    old = f"alice-old-0a1b2c:{keys.hashed(OTHER)}::9999-12-31\n"
    path.write_text(f"{old}alice:{SECRET}\n")

    status, _, err = run("set", "alice-old-0a1b2c", "--weight", "2")
    assert (status, path.read_text()) == (1, f"{old}alice:{SECRET}\n")
    assert f"change them with: llama-gguf keys set alice --file {path}\n" in err
    run("set", "alice", "--weight", "2")

    assert path.read_text() == f"{old}alice:{SECRET} weight=2\n"


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (("alice",), 2, "specify what to change, such as --tokens-per-day 2M"),
        (("carol", "--weight", "2"), 1, "there is no key 'carol' in"),
        (("alice", "--weight", "0"), 2, "--weight '0' is invalid: a whole number from 1 to 100"),
        (("alice", "--tokens-per-day", "2G"), 2, "--tokens-per-day '2G' is invalid: a whole"),
        (
            ("alice", "--tokens-per-day", "9999999M"),
            2,
            "from 1 to 1000000000000, such as 20k or 2M",
        ),
        (("alice", "--from", "10.0.0.1/8"), 2, "--from '10.0.0.1/8' is invalid: at most 64"),
        (("alice", "--routes", "chats"), 2, "--routes 'chats' is invalid: names separated by"),
        (("alice", "--priority", "high"), 2, "--priority 'high' is invalid: one of normal, low"),
        (("alice", "--expires", "1999-01-01"), 2, "--expires '1999-01-01' is invalid: it must be"),
    ],
)
def test_an_invalid_change_changes_nothing(
    argv: tuple[str, ...], status: int, message: str, run: Run, path: Path
) -> None:
    path.write_text(f"alice:{SECRET}\n")

    found, out, err = run("set", *argv)

    assert (found, out) == (status, "")
    assert message in err
    assert path.read_text() == f"alice:{SECRET}\n"


def test_a_rotation_keeps_all_limits(run: Run, path: Path) -> None:
    path.write_text(f"alice:{SECRET}:60 {FULL}\n")

    run("rotate", "alice", "--grace", "1h")

    new, old = ring_of(path).keys
    assert new.attributes == old.attributes
    assert path.read_text().splitlines()[0].endswith(f":60 {FULL}")


# show ---------------------------------------------------------------------------------------------


def test_a_secret_in_plain_text_is_shown_alone(run: Run, path: Path) -> None:
    path.write_text(
        f"alice:{SECRET}:60 weight=4\nalice-old-0a1b2c:{OTHER}\nalice:sk-of-a-duplicate\n"
    )

    assert run("show", "alice") == (0, f"{SECRET}\n", "")
    assert run("show", "alice-old-0a1b2c") == (0, f"{OTHER}\n", "")
    shown = json.loads(run("show", "alice", "--json")[1])
    assert (shown["id"], shown["key"], shown["weight"]) == ("alice", SECRET, 4)


def test_a_digest_is_not_shown(run: Run, path: Path) -> None:
    path.write_text(f"alice:{keys.hashed(SECRET)}\nalice-old-0a1b2c:{OTHER}\n")

    status, out, err = run("show", "alice")

    assert (status, out) == (1, "")
    assert f"replace it with: llama-gguf keys rotate alice --file {path}\n" in err
    assert keys.hashed(SECRET) not in err
    assert run("show", "bob")[0] == 1


# list ---------------------------------------------------------------------------------------------


def listed(run: Run) -> dict[str, Any]:
    status, out, _ = run("list", "--json")
    assert status == 0
    content = json.loads(out)
    assert isinstance(content, dict)
    return content


def test_the_list_shows_all_facts_about_a_key_except_its_secret(run: Run, path: Path) -> None:
    soon = format_moment((datetime.now(UTC) + timedelta(hours=3, minutes=30)).timestamp())
    path.write_text(
        f"# ours\nalice:{SECRET}:60:{soon}\nbob:{keys.hashed(OTHER)}\n"
        "old:sk-of-long-ago-0000:2001-01-01\nbad line\n"
    )

    status, out, _ = run("list")

    rows = [line.split() for line in out.splitlines()]
    assert status == 0
    assert rows[0] == ["ID", "PER", "MINUTE", "EXPIRES", "STORED"]
    assert rows[1] == ["alice", "60", soon, "(in", "3", "hours)", "plain"]
    assert rows[2] == ["bob", "default", "never", "digest"]
    assert rows[3][:4] == ["old", "default", "2001-01-01T00:00:00Z", "(expired"]
    assert "  line 5: a line must be key_id:api_key[:rate_limit][:expiration]" in out
    for secret in (SECRET, OTHER, "sk-of-long-ago", keys.hashed(OTHER)):
        assert secret not in out


def list_in(folder: Path, *flags: str) -> int:
    environ = {"DATA_DIR": str(folder), "INSTANCE_ID": "here"}
    return main(["keys", "list", *flags], environ=environ)


def test_the_list_shows_what_remains_of_budgets(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text(f"alice:{SECRET} tokens_per_day=100 engine_seconds_per_day=9\nbob:{OTHER}\n")
    folder = path.parent / "budgets"
    folder.mkdir()
    now = datetime.now(UTC).timestamp()
    ledger = BudgetLedger()
    reserved = ledger.of("alice").reserve(1, now, now)
    ledger.of("alice").settle(reserved, 30, 2500, now=now, wall=now)
    (folder / "here.json").write_text(ledger.dump())

    assert list_in(path.parent, "--json") == 0
    alice, bob = json.loads(capsys.readouterr().out)["keys"]
    assert list_in(path.parent) == 0
    out = capsys.readouterr().out

    assert alice["remaining"] == {"tokens_per_day": 70, "engine_seconds_per_day": 6.5}
    assert bob["remaining"] == {}
    assert "tokens_per_day=70 engine_seconds_per_day=6.5" in out


def test_budgets_that_cannot_be_read_are_a_warning_of_the_list(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text(f"alice:{SECRET} tokens_per_day=100\n")
    folder = path.parent / "budgets"
    folder.mkdir()
    (folder / "here.json").write_text("not ours")

    status = list_in(path.parent)

    out, err = capsys.readouterr()
    assert status == 0
    assert "tokens_per_day=100" in out
    assert f"warning: {folder}/here.json cannot be read" in err


def test_the_list_can_be_printed_as_json(run: Run, path: Path) -> None:
    path.write_text(f"alice:{SECRET}:60:2001-01-01\nbob:{keys.hashed(OTHER)}\nbad line\n")

    assert listed(run) == {
        "file": str(path),
        "keys": [
            {
                "id": "alice",
                "old_secret_of": None,
                "rate_limit": 60,
                "expires_at": "2001-01-01T00:00:00Z",
                "expired": True,
                "hashed": False,
                **NO_LIMITS,
                "remaining": {},
            },
            {
                "id": "bob",
                "old_secret_of": None,
                "rate_limit": None,
                "expires_at": None,
                "expired": False,
                "hashed": True,
                **NO_LIMITS,
                "remaining": {},
            },
        ],
        "problems": [
            {
                "line": 3,
                "reason": "a line must be key_id:api_key[:rate_limit][:expiration] "
                "[name=value ...]",
            }
        ],
    }


def test_the_list_shows_all_limits(run: Run, path: Path) -> None:
    path.write_text(f"alice:{SECRET} {FULL}\nbob:{OTHER}\n")

    alice, bob = listed(run)["keys"]
    _, out, _ = run("list")

    assert {name: alice[name] for name in NO_LIMITS} == {
        "tokens_per_minute": 10_000,
        "tokens_per_day": 2_000_000,
        "tokens_per_month": 50_000_000,
        "engine_seconds_per_day": 3600,
        "routes": ["chat", "embeddings"],
        "from": ["10.0.0.0/8", "2001:db8::/32"],
        "weight": 4,
        "priority": "low",
    }
    assert {name: bob[name] for name in NO_LIMITS} == NO_LIMITS
    assert out.splitlines()[0].split()[-3:] == ["FURTHER", "LIMITS", "REMAINING"]
    assert f"plain   {FULL}" in out.splitlines()[1]
    assert out.splitlines()[2].endswith("plain")


def test_an_old_secret_is_listed_with_its_key_and_expiry(run: Run, path: Path) -> None:
    path.write_text(f"alice:{SECRET}\nalice-old-0a1b2c:{keys.hashed(OTHER)}:60:9999-12-31\n")

    (_, old) = listed(run)["keys"]
    row = run("list")[1].splitlines()[2]

    assert (old["id"], old["old_secret_of"]) == ("alice-old-0a1b2c", "alice")
    assert old["expires_at"] == "9999-12-31T00:00:00Z"
    assert row.startswith("alice-old-0a1b2c")
    assert row.endswith("digest, old secret of alice")


def test_an_empty_list_shows_how_to_create_a_key(run: Run, path: Path) -> None:
    path.write_text("# none yet\n")

    status, out, _ = run("list")

    assert status == 0
    assert out == (
        f"There are no keys in {path}. Create one with: llama-gguf keys generate --file {path}\n"
    )


def test_a_missing_file_exits_with_1(run: Run, path: Path) -> None:
    status, out, err = run("list")

    assert (status, out) == (1, "")
    assert err.startswith(f"llama-gguf: there is no keys file {path}; ")


def test_the_list_warns_of_a_file_readable_by_others(run: Run, path: Path) -> None:
    path.write_text(f"alice:{SECRET}\n")
    path.chmod(0o644)

    _, _, err = run("list")

    assert err.startswith(f"llama-gguf: warning: other users can access {path} (mode 0644)")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "in 1 second"),
        (59, "in 59 seconds"),
        (60, "in 1 minute"),
        (3599, "in 59 minutes"),
        (7200, "in 2 hours"),
        (86400, "in 1 day"),
        (30 * 86400 - 1, "in 29 days"),
        (0, "expired 1 second ago"),
        (-61, "expired 1 minute ago"),
        (-3 * 3600, "expired 3 hours ago"),
    ],
)
def test_the_remaining_time_is_shown_in_the_largest_unit(seconds: float, text: str) -> None:
    now = datetime(2026, 5, 1, tzinfo=UTC)
    key = Key("a", b"", expires_at=now.timestamp() + seconds)

    assert key_views._expiry(key, now).endswith(f"({text})")


# remove -------------------------------------------------------------------------------------------


def test_a_removed_key_is_invalid(run: Run, path: Path) -> None:
    path.write_text(f"# ours\nalice:{SECRET}\nbob:{OTHER}\n# end")

    status, out, err = run("remove", "alice")

    assert (status, out, err) == (0, f"Removed alice from {path}: 1 secret ended.\n", TAKEN_UP)
    assert path.read_text() == f"# ours\nbob:{OTHER}\n# end"


def graced(path: Path, run: Run) -> list[str]:
    """Secrets of alice: two in their grace period, then the new one. Bob also has one."""
    path.write_text(f"# ours\nalice:{SECRET}:60\nbob:{OTHER}\n")
    made = [run("rotate", "alice", "--grace", "24h", "--quiet")[1].strip() for _ in range(2)]
    assert [key_of(path, secret).key_id for secret in (SECRET, *made)] == ["alice"] * 3
    return [SECRET, *made]


def let_in(path: Path, secrets: list[str]) -> list[str]:
    return [secret for secret in secrets if ring_of(path).look_up(secret.encode())]


def test_removing_a_key_invalidates_its_old_secrets(run: Run, path: Path) -> None:
    secrets = graced(path, run)
    status, out, _ = run("remove", "alice")

    assert (status, out) == (0, f"Removed alice from {path}: 3 secrets ended.\n")
    assert let_in(path, [*secrets, OTHER]) == [OTHER]
    assert path.read_text() == f"# ours\nbob:{OTHER}\n"


def test_a_removal_as_json_has_the_number_of_invalidated_secrets(run: Run, path: Path) -> None:
    graced(path, run)
    _, out, _ = run("remove", "alice", "--json")

    assert json.loads(out) == {"file": str(path), "removed": "alice", "ended": 3}


def test_an_old_secret_can_be_removed_alone(run: Run, path: Path) -> None:
    secrets = graced(path, run)
    name = key_of(path, secrets[0]).line_id
    status, out, _ = run("remove", name)

    assert (status, out) == (0, f"Removed {name} from {path}: 1 secret ended.\n")
    assert let_in(path, secrets) == secrets[1:]


def test_a_key_with_only_an_old_secret_can_be_removed(run: Run, path: Path) -> None:
    path.write_text(f"alice-old-0a1b2c:{keys.hashed(SECRET)}::9999-12-31\n")
    status, out, _ = run("remove", "alice")

    assert (status, out) == (0, f"Removed alice from {path}: 1 secret ended.\n")
    assert path.read_text() == ""


def test_expired_secrets_are_not_counted_as_invalidated(run: Run, path: Path) -> None:
    path.write_text(f"alice:{SECRET}::2001-01-01\nalice-old-0a1b2c:{OTHER}::2001-01-01\n")
    _, out, _ = run("remove", "alice", "--json")

    assert json.loads(out)["ended"] == 0
    assert path.read_text() == ""


@pytest.mark.parametrize(
    "argv", [("remove", "bob"), ("rotate", "bob"), ("generate",), ("import", "OTHER")]
)
def test_a_change_removes_old_secrets_after_their_grace_period(
    argv: tuple[str, ...], run: Run, path: Path, tmp_path: Path
) -> None:
    (tmp_path / "other").write_text("carol:sk-carol-0123456789\n")
    path.write_text(
        f"alice-old-0a1b2c:{SECRET}::2001-01-01\nbob:{OTHER}\nold:{SECRET}x:2001-01-01\n"
    )
    status, _, _ = run(*(str(tmp_path / "other") if word == "OTHER" else word for word in argv))

    assert status == 0
    assert "alice-old-" not in path.read_text()
    assert f"old:{SECRET}x:2001-01-01\n" in path.read_text(), "a key of its own stays"


def test_a_name_is_in_use_while_an_old_secret_is_valid(run: Run, path: Path) -> None:
    path.write_text(f"alice-old-0a1b2c:{keys.hashed(SECRET)}::9999-12-31\n")
    refused = run("generate", "--name", "alice")
    path.write_text(f"alice-old-0a1b2c:{keys.hashed(SECRET)}::2001-01-01\n")
    made = run("generate", "--name", "alice")

    assert (refused[0], made[0]) == (1, 0)
    assert "already has a key alice" in refused[2]


def test_no_key_can_be_created_with_the_id_of_an_old_secret(run: Run, path: Path) -> None:
    path.write_text(f"bob:{OTHER}\n")
    status, out, err = run("generate", "--name", "bob-old-0a1b2c")

    assert (status, out) == (2, "")
    assert "reserved for old secrets of bob" in err
    assert path.read_text() == f"bob:{OTHER}\n"


@pytest.mark.parametrize("action", ["remove", "rotate"])
def test_an_unknown_id_is_rejected_and_nothing_is_written(
    run: Run, path: Path, action: str
) -> None:
    path.write_text(f"alice:{SECRET}\n")

    status, out, err = run(action, "bob")

    assert (status, out) == (1, "")
    assert err == (
        f"llama-gguf: there is no key 'bob' in {path}; "
        f"list its keys with: llama-gguf keys list --file {path}\n"
    )
    assert path.read_text() == f"alice:{SECRET}\n"


def test_removing_from_a_missing_file_creates_no_file(run: Run, path: Path) -> None:
    status, _, _ = run("remove", "alice")

    assert status == 1
    assert not path.exists()


# rotate -------------------------------------------------------------------------------------------


def test_a_rotated_key_keeps_its_settings_and_position(run: Run, path: Path) -> None:
    path.write_text(f"# ours\nalice:{SECRET}:60:9999-12-31\nbob:{OTHER}\n")

    status, out, err = run("rotate", "alice", "--json")

    made = json.loads(out)
    key = key_of(path, made["key"])
    assert status == 0
    assert (key.key_id, key.rate_limit, key.expires_at) == ("alice", 60, NEVER)
    assert [k.key_id for k in ring_of(path).keys] == ["alice", "bob"]
    assert ring_of(path).look_up(SECRET.encode()) is None
    assert made["ended"] == 1
    assert err == "1 old secret ended.\n" + TAKEN_UP


@pytest.mark.parametrize("stored", [SECRET, keys.hashed(SECRET)])
def test_a_rotated_key_is_stored_as_it_was(run: Run, path: Path, stored: str) -> None:
    path.write_text(f"alice:{stored}\n")

    _, out, _ = run("rotate", "alice", "--quiet")

    assert key_of(path, out.strip()).hashed is (stored != SECRET)


def test_during_the_grace_period_the_old_secret_is_valid(run: Run, path: Path) -> None:
    path.write_text(f"alice:{SECRET}:60\nbob:{OTHER}\n")

    _, out, err = run("rotate", "alice", "--grace", "24h", "--json")

    old = key_of(path, SECRET)
    assert old.key_id == "alice"
    assert old.line_id.startswith("alice-old-")
    assert old.rate_limit == 60
    assert 0.9 < days_left(old) <= 1
    made = json.loads(out)
    assert made["ended"] == 0
    assert key_of(path, made["key"]).expires_at is None
    assert [k.line_id for k in ring_of(path).keys] == ["alice", old.line_id, "bob"]
    assert SECRET not in path.read_text()
    assert old.expires_at is not None
    until = format_moment(old.expires_at)
    assert err == f"{old.line_id}, an old secret, stays valid until {until}.\n{TAKEN_UP}"


def test_a_grace_period_ends_with_the_key(run: Run, path: Path) -> None:
    path.write_text(f"alice:{SECRET}:9999-12-30\n")

    run("rotate", "alice", "--grace", "9999-12-31")

    assert key_of(path, SECRET).expires_at == NEVER - 86400


def test_an_old_secret_is_attributed_to_a_key_with_an_id_of_any_length(
    run: Run, path: Path
) -> None:
    path.write_text(f"{'a' * 64}:{SECRET}\n")

    run("rotate", "a" * 64, "--grace", "60m")

    assert ring_of(path).problems == ()
    assert key_of(path, SECRET).key_id == "a" * 64
    assert run("remove", "a" * 64)[0] == 0
    assert len(ring_of(path)) == 0


def test_a_key_can_be_rotated_again_within_its_grace_period(run: Run, path: Path) -> None:
    path.write_text(f"alice:{SECRET}\n")

    run("rotate", "alice", "--grace", "24h")
    first = key_of(path, SECRET)
    run("rotate", "alice", "--grace", "48h")

    assert len(ring_of(path).keys) == 3
    assert key_of(path, SECRET) == first, "its grace neither ends nor grows"


def test_rotating_without_grace_invalidates_all_old_secrets(run: Run, path: Path) -> None:
    secrets = graced(path, run)
    status, out, err = run("rotate", "alice", "--json")

    made = json.loads(out)
    assert (status, made["ended"]) == (0, 3)
    assert err == f"3 old secrets ended.\n{TAKEN_UP}"
    assert let_in(path, [*secrets, made["key"]]) == [made["key"]]
    assert [key.line_id for key in ring_of(path).keys] == ["alice", "bob"]


@pytest.mark.parametrize("grace", [(), ("--grace", "24h")])
def test_a_key_with_only_an_old_secret_can_be_rotated(
    grace: tuple[str, ...], run: Run, path: Path
) -> None:
    """It keeps its expiration, since that of the key itself is unknown."""
    path.write_text(f"alice-old-0a1b2c:{keys.hashed(SECRET)}:60:9999-12-31\nbob:{OTHER}\n")
    status, out, _ = run("rotate", "alice", "--quiet", *grace)

    new = key_of(path, out.strip())
    assert status == 0
    assert (new.line_id, new.rate_limit, new.expires_at) == ("alice", 60, NEVER)
    assert bool(let_in(path, [SECRET])) is bool(grace)
    assert [key.key_id for key in ring_of(path).keys][-1] == "bob"


def test_an_old_secret_is_not_rotated(run: Run, path: Path) -> None:
    before = f"alice:{SECRET}\nalice-old-0a1b2c:{keys.hashed(OTHER)}::9999-12-31\n"
    path.write_text(before)
    status, _, err = run("rotate", "alice-old-0a1b2c")

    assert status == 1
    assert "alice-old-0a1b2c is an old secret of alice: rotate alice" in err
    assert path.read_text() == before


def test_an_expired_key_is_not_rotated(run: Run, path: Path) -> None:
    before = f"alice:{SECRET}:2001-01-01\n"
    path.write_text(before)

    status, out, err = run("rotate", "alice", "--grace", "24h")

    assert (status, out) == (1, "")
    assert "alice has expired" in err
    assert f"keys set alice --expires 30d --file {path}\n" in err
    assert path.read_text() == before


def test_an_invalid_grace_period_is_rejected(run: Run, path: Path) -> None:
    path.write_text(f"alice:{SECRET}\n")

    status, _, err = run("rotate", "alice", "--grace", "a while")

    assert status == 2
    assert "--grace 'a while' is invalid: use the form 30d, 24h, 60m" in err


# import -------------------------------------------------------------------------------------------


@pytest.fixture
def other(tmp_path: Path) -> Path:
    path = tmp_path / "other.txt"
    path.write_text(f"# theirs\nbob:{OTHER}:60:2099-01-01\n")
    return path


def test_imported_keys_keep_their_settings_and_are_valid(run: Run, path: Path, other: Path) -> None:
    path.write_text(f"# mine\nalice:{SECRET}\n")
    status, out, err = run("import", str(other))

    assert (status, out, err) == (0, f"Imported 1 key into {path}: bob\n", TAKEN_UP)
    assert path.read_text() == f"# mine\nalice:{SECRET}\nbob:{OTHER}:60:2099-01-01\n"


def test_imported_keys_can_be_stored_as_digests(run: Run, path: Path, other: Path) -> None:
    run("import", str(other), "--hashed")

    assert OTHER not in path.read_text()
    assert key_of(path, OTHER).rate_limit == 60


def test_bare_keys_of_llama_server_get_names(run: Run, path: Path, other: Path) -> None:
    path.write_text(f"imported-1:{SECRET}\n")
    other.write_text(f"{OTHER}\n\n  {OTHER}-2 \r\n")
    status, out, _ = run("import", str(other))

    assert (status, out) == (0, f"Imported 2 keys into {path}: imported-2, imported-3\n")
    assert key_of(path, f"{OTHER}-2").key_id == "imported-3"


def test_the_names_of_bare_keys_can_be_chosen(run: Run, path: Path, other: Path) -> None:
    other.write_text(OTHER)
    run("import", str(other), "--prefix", "team")

    assert key_of(path, OTHER).key_id == "team-1"


def test_existing_keys_are_not_imported_again(run: Run, path: Path, other: Path) -> None:
    run("import", str(other))
    before = path.read_text()
    status, out, _ = run("import", str(other))

    assert (status, out) == (0, f"Imported 0 keys into {path} (1 already present).\n")
    assert path.read_text() == before


def test_nothing_of_a_file_with_an_invalid_line_is_imported_or_shown(
    run: Run, path: Path, other: Path
) -> None:
    other.write_text(f"bob:{OTHER}\nsecret\ncarol:{OTHER}-2:many\n")
    status, out, err = run("import", str(other))

    assert (status, out) == (1, "")
    assert "line 2: a line must be key_id:api_key" in err
    assert "or a key alone" in err
    assert "line 3: " in err
    assert "secret" not in err.replace(str(other), "")
    assert OTHER not in err
    assert not path.exists()


def test_old_secrets_are_imported_only_with_their_key(run: Run, path: Path, other: Path) -> None:
    old = f"bob-old-0a1b2c:{keys.hashed(SECRET)}::9999-12-31\n"
    other.write_text(f"bob:{OTHER}\n{old}")
    _, out, _ = run("import", str(other))
    assert out == f"Imported 2 keys into {path}: bob, bob-old-0a1b2c\n"
    run("remove", "bob-old-0a1b2c")
    status, _, err = run("import", str(other))

    assert status == 1
    assert "line 2: it contains an old secret of a key that is already in the file" in err
    assert ring_of(path).look_up(SECRET.encode()) is None


def test_an_id_in_use_by_another_key_is_not_imported(run: Run, path: Path, other: Path) -> None:
    path.write_text(f"bob:{SECRET}\n")
    status, _, err = run("import", str(other))

    assert status == 1
    assert "line 2: the key id is taken by another key" in err
    assert path.read_text() == f"bob:{SECRET}\n"


@pytest.mark.processes
def test_keys_can_be_imported_from_standard_input(path: Path) -> None:
    argv = [sys.executable, "-m", "llama_gguf", "keys", "import", "-", "--file", str(path)]
    subprocess.run(argv, input=f"bob:{OTHER}\n", text=True, check=True, timeout=60)
    done = subprocess.run(argv, input=b"\xff\xfe", capture_output=True, check=False, timeout=60)

    assert key_of(path, OTHER).key_id == "bob"
    assert done.returncode == 1
    assert b"not UTF-8" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_missing_import_file_is_named(run: Run, tmp_path: Path) -> None:
    status, _, err = run("import", str(tmp_path / "none"))

    assert (status, err) == (
        1,
        f"llama-gguf: there is no file {tmp_path / 'none'}; check the path\n",
    )


def test_an_import_can_be_printed_as_json(run: Run, path: Path, other: Path) -> None:
    _, out, _ = run("import", str(other), "--json")

    assert json.loads(out) == {"file": str(path), "imported": ["bob"], "known": 0}


# hash ---------------------------------------------------------------------------------------------


def test_hashing_removes_all_secrets_and_changes_nothing_else(run: Run, path: Path) -> None:
    text = f"# a\n\n alice:{SECRET}:60:2099-01-01T00:00:00Z \nbob:{OTHER}\r\nnonsense\n#end"
    path.write_text(text, newline="")
    before = ring_of(path).keys
    status, out, _ = run("hash")

    hashed = path.read_bytes().decode()
    assert status == 0
    assert "the secrets of 2 keys in" in out
    assert "line 5: " in out
    digests = [keys.hashed(secret) for secret in (SECRET, OTHER)]
    assert hashed == text.replace(SECRET, digests[0]).replace(OTHER, digests[1])
    assert [(k.key_id, k.digest, k.rate_limit, k.expires_at) for k in ring_of(path).keys] == [
        (k.key_id, k.digest, k.rate_limit, k.expires_at) for k in before
    ]
    assert [k.hashed for k in ring_of(path).keys] == [True, True]


def test_hashing_again_changes_nothing(run: Run, path: Path) -> None:
    path.write_text(f"alice:{SECRET}\n")
    run("hash")
    before = path.read_text()
    _, out, _ = run("hash", "--json")

    assert json.loads(out) == {"file": str(path), "hashed": 0, "problems": []}
    assert path.read_text() == before


def test_hashing_includes_lines_that_are_skipped_as_duplicates(run: Run, path: Path) -> None:
    path.write_text(f"alice:{SECRET}\nalice:{OTHER}\n")
    run("hash")

    assert OTHER not in path.read_text()


def test_hashing_a_missing_file_is_an_error(run: Run, path: Path) -> None:
    status, _, err = run("hash")

    assert status == 1
    assert "there is no keys file" in err
    assert not path.exists()


# Settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [
        ["--data-dir", "HERE", "list", "--json"],
        ["list", "--json", "--data-dir", "HERE"],
        ["--data-dir", "/nowhere", "list", "--json", "--data-dir", "HERE"],
    ],
)
def test_a_setting_can_precede_or_follow_the_action(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "api_keys.txt").write_text(f"alice:{SECRET}\n")
    status = main(["keys", *(str(tmp_path) if a == "HERE" else a for a in argv)], environ={})

    assert status == 0
    assert json.loads(capsys.readouterr().out)["keys"][0]["id"] == "alice"


# Concurrent changes -------------------------------------------------------------------------------


@pytest.mark.processes
def test_eight_concurrent_commands_lose_no_change(path: Path) -> None:
    path.write_text(f"# ours\nalice:{SECRET}\n")
    argv = [sys.executable, "-m", "llama_gguf", "keys", "generate", "--quiet"]
    running = [
        subprocess.Popen(
            [*argv, "--file", str(path), "--name", f"k{n}"], stdout=subprocess.PIPE, text=True
        )
        for n in range(8)
    ]

    made = [child.communicate()[0].strip() for child in running]

    assert [child.returncode for child in running] == [0] * 8
    assert {key_of(path, secret).key_id for secret in made} == {f"k{n}" for n in range(8)}
    assert path.read_text().startswith(f"# ours\nalice:{SECRET}\nk")
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
