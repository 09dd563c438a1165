from __future__ import annotations

import pytest

from llama_gguf.engines.flags import complaints, read_flags

# Lines of llama-server's own help.
HELP = """\
----- common params -----

-h,    --help, --usage                  print usage and exit
-t,    --threads N                      number of CPU threads to use
                                        (env: LLAMA_ARG_THREADS)
-c,    --ctx-size N                     size of the prompt context
--poll <0...100>                        use polling level to wait for work
-kvo,  --kv-offload, -nkvo, --no-kv-offload
                                        whether to enable KV cache offloading (default: enabled)
-fit,  --fit [on|off]                   whether to adjust unset arguments to fit in device memory
--override-kv KEY=TYPE:VALUE,...        advanced option to override model metadata by key.
-ts,   --tensor-split N0,N1,N2,...      fraction of the model to offload to each GPU
--spec-type none,draft-simple
                                        comma-separated list of types
-m,    --model FNAME                    model path to load
--port PORT                             port to listen
--api-prefix PREFIX                     prefix path the server serves from
"""
FLAGS = read_flags(HELP)


def complaints_of(*words: str) -> list[str]:
    return list(complaints(words, FLAGS))


def test_each_name_of_a_flag_is_read_and_whether_it_takes_a_value() -> None:
    assert {f for f, takes in FLAGS.items() if not takes} == {
        *("-h", "--help", "--usage", "-kvo", "--kv-offload", "-nkvo", "--no-kv-offload"),
    }
    assert {f for f, takes in FLAGS.items() if takes} == {
        *("-t", "--threads", "-c", "--ctx-size", "--poll", "-fit", "--fit", "--override-kv"),
        *("-ts", "--tensor-split", "--spec-type", "-m", "--model", "--port", "--api-prefix"),
    }


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--threads", "-1", "-kvo"),
        ("--ctx_size", "4096"),
        ("--override-kv", "a=int:1", "--fit", "off"),
    ],
)
def test_known_flags_cause_no_complaint(words: tuple[str, ...]) -> None:
    assert complaints_of(*words) == []


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--thread", "4"), "llama-server has no flag --thread; did you mean --threads?"),
        (("--wholly-unknown",), "llama-server has no flag --wholly-unknown"),
        (("--threads=4",), "--threads=4: its value must be a separate word, after a space"),
        (("-kvo", "on"), "on is not the value of a flag: check the words before it"),
        (("-c",), "-c requires a value"),
    ],
)
def test_an_unknown_flag_is_reported(words: tuple[str, ...], complaint: str) -> None:
    assert complaints_of(*words)[0] == complaint


def test_all_mistakes_are_reported() -> None:
    assert len(complaints_of("--thread", "--foo", "-c")) == 3
