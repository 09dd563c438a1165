from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import subprocess
import sys

import pytest

from llama_gguf.cli.terminal import (
    LoadMeter,
    bar_text,
    download_meter,
    echo,
    has_colours,
    print_table,
    progress_meter,
)


def test_text_is_on_standard_output_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    echo("two\nlines")

    assert capsys.readouterr() == ("two\nlines\n", "")


# Tables -------------------------------------------------------------------------------------------


@pytest.mark.processes
@pytest.mark.parametrize("environ", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
def test_output_that_cannot_be_written_is_an_error_without_traceback(
    environ: dict[str, str],
) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "llama_gguf", "pull", "--list"],
            env=environ,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert done.returncode == 1
    assert done.stderr == "llama-gguf: the output cannot be written: No space left on device\n"


def test_a_table_in_a_pipe_has_one_line_per_row(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 120

    print_table(("NAME", "VALUE"), [("a", long), ("b", "short")])

    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows == [["NAME", "VALUE"], ["a", long], ["b", "short"]]


def test_a_table_in_a_pipe_truncates_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 1000

    print_table(("NAME", "VALUE"), [("a", long)])

    assert long in capsys.readouterr().out


@pytest.mark.parametrize("text", ["[bold]x[/bold]", "a:key:b", "[/]", "{x}", "http://h:80/[1]"])
def test_a_table_interprets_no_markup(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("VALUE",), [(text,)])

    # Rich would replace names between colons, such as :key:, by emoji.
    assert capsys.readouterr().out.splitlines()[1].rstrip() == text


def test_a_table_in_a_pipe_has_no_colours(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("NAME",), [("a",)])

    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.processes
def test_a_table_fits_the_terminal() -> None:
    shown = on_a_terminal("print_table(('A', 'B'), [('a', 'x' * 90)])", columns=60)

    assert max(map(len, without_colours(shown).splitlines())) <= 60
    assert "\nax" in shown.replace(" ", "").replace("\r", "")


# Meters -------------------------------------------------------------------------------------------


def test_a_download_logs_at_most_eleven_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with download_meter("m.gguf") as report:
        for done in range(0, 98_400_001, 100_000):
            report(done, 98_400_000)

    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "m.gguf  0 % of 98.4 MB"
    assert lines[-1] == "m.gguf  100 % of 98.4 MB"
    assert len(lines) == 11


def test_a_fast_download_logs_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with download_meter("m.gguf") as report:
        report(5, 5)
        report(5, 5)

    assert capsys.readouterr().err == "m.gguf  100 % of 0.0 MB\n"


def test_a_download_of_unknown_size_logs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with download_meter("m.gguf") as report:
        report(1, None)
        report(10, 0)

    assert capsys.readouterr() == ("", "")


@pytest.mark.processes
def test_a_terminal_shows_a_bar() -> None:
    code = "with download_meter('m.gguf') as report: report(1, None); report(98, 98)"

    shown = without_colours(on_a_terminal(code, columns=100))

    assert "m.gguf" in shown
    assert "98/98" in shown


def test_progress_logs_one_line_per_label(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress_meter() as report:
        for label in ("1 stream: 1 answers", "1 stream: 2 answers", "2 streams: 9 answers"):
            report(label, 0.5)

    assert capsys.readouterr() == ("", "1 stream ...\n2 streams ...\n")


@pytest.mark.processes
def test_progress_on_a_terminal_is_a_bar_with_its_label() -> None:
    code = "with progress_meter() as report: report('[x] 2 answers', 0.5)"

    shown = without_colours(on_a_terminal(code, columns=100))

    assert re.search(r"\[x\] 2 answers ━+.* 50% (-|\d+):[-\d:]+ left", shown)


def on_a_terminal(code: str, *, columns: int) -> str:
    """The output of *code* with a terminal as standard output and error."""
    leader, follower = pty.openpty()
    with open(leader, "rb", buffering=0) as terminal:
        process = subprocess.Popen(
            [sys.executable, "-c", f"from llama_gguf.cli.terminal import *\n{code}"],
            stdout=follower,
            stderr=follower,
            env={"COLUMNS": str(columns), "TERM": "xterm"},
        )
        os.close(follower)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the last writer has closed it
            while some := terminal.read(4096):
                shown += some
        assert process.wait(30) == 0
    return shown.decode()


def without_colours(shown: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)


LOG_LINE = (
    "import subprocess; subprocess.run(['printf', r'\\r\\033[Ka line of another process\\n'])"
)


def drawn(code: str, *, after: float = 0.0) -> str:
    """What *code* shows on a terminal; in it, ``shown()`` waits until the bar has been drawn."""
    meter = f"LoadMeter({{'TERM': 'xterm'}}, after_seconds={after}, every_seconds=0.01)"
    wait = "shown = lambda: any(time.sleep(0.01) for _ in range(100))"
    return on_a_terminal(f"m = {meter}; {wait}\n{code}", columns=100)


@pytest.mark.processes
def test_a_terminal_shows_a_bar_during_a_load() -> None:
    shown = drawn("m.show('loading it', None); m.show('loading it', 0.42); shown(); m.hide()")

    assert "loading it [=============                 ]  42%" in shown


@pytest.mark.processes
def test_a_bar_leaves_nothing_on_its_line() -> None:
    shown = drawn("m.show('loading it', 0.42); shown(); m.hide(); print('over')")

    assert on_screen(shown) == ["over"]


@pytest.mark.processes
def test_a_line_of_another_process_does_not_share_the_bars_line() -> None:
    shown = drawn(f"m.show('loading it', 0.42); shown(); {LOG_LINE}; shown(); m.hide()")

    assert on_screen(shown) == ["a line of another process"]


def test_a_bar_has_share_and_time() -> None:
    assert bar_text("loading x", 0.5, 75.0) == f"loading x [{'=' * 15}{' ' * 15}]  50% 1:15"
    assert bar_text("loading x", None, 5.9) == "loading x ... 0:05"


def on_screen(written: str) -> list[str]:
    """The lines that a terminal shows in the end, for the control sequences of the bar."""
    lines = [""]
    column = 0
    for part in re.findall(r"\x1b\[K|\r|\n|[^\x1b\r\n]+", written):
        if part == "\x1b[K":
            lines[-1] = lines[-1][:column]
        elif part == "\r":
            column = 0
        elif part == "\n":
            lines.append("")
        else:
            lines[-1] = lines[-1][:column] + part + lines[-1][column + len(part) :]
            column += len(part)
    return [line for line in lines if line]


@pytest.mark.processes
def test_a_short_load_on_a_terminal_shows_nothing() -> None:
    assert drawn("m.show('loading it', 0.42); m.hide(); print('over')", after=60.0) == "over\r\n"


@pytest.mark.processes
def test_a_terminal_without_control_sequences_shows_no_bar() -> None:
    code = "m = LoadMeter({'TERM': 'dumb'}, after_seconds=0); m.show('x', 0.5); m.hide(); print(1)"

    assert on_a_terminal(code, columns=100) == "1\r\n"


def test_without_a_terminal_a_load_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    meter = LoadMeter({"TERM": "xterm"}, after_seconds=0.0)
    meter.show("loading it", 0.42)
    meter.hide()

    assert capsys.readouterr() == ("", "")


# Colours ------------------------------------------------------------------------------------------


class FakeStream(io.StringIO):
    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.mark.parametrize(
    ("is_terminal", "environ", "expected"),
    [
        (True, {"TERM": "xterm"}, True),
        (True, {"TERM": "xterm", "NO_COLOR": ""}, True),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (True, {}, False),
        (False, {"TERM": "xterm"}, False),
    ],
)
def test_only_a_terminal_that_is_not_opted_out_gets_colours(
    is_terminal: bool, environ: dict[str, str], expected: bool
) -> None:
    assert has_colours(FakeStream(is_terminal=is_terminal), environ) is expected
