from __future__ import annotations

from llama_gguf.engines.mixed import Candidate, Served, decisive, difference

A = Served("a.gguf", 4096)
B = Served("b.gguf", 4096)
SHORT = Served("a.gguf", 2048)


def test_what_local_engines_have_is_served_whichever_it_is() -> None:  # 1
    ready = [Candidate(B), Candidate(A, is_local=True), Candidate(SHORT, is_local=True)]

    allowed = decisive(ready, B)

    assert allowed == [A, SHORT]
    assert [bool(difference(each, allowed)) for each in (A, B, SHORT)] == [False, True, False]


def test_what_is_served_stays_until_no_replica_has_it() -> None:  # 3
    assert decisive([Candidate(B), Candidate(A)], A) == [A]
    assert decisive([Candidate(B), Candidate(B)], A) == [B]


def test_the_setting_decides_between_peers() -> None:  # 2
    assert decisive([Candidate(A), Candidate(B)], A, "b") == [B]
    assert decisive([Candidate(A), Candidate(B)], None, "models/B") == [B]


def test_else_the_first_one_decides() -> None:  # 4
    assert decisive([Candidate(A), Candidate(B)], None, "other") == [A]
    assert decisive([], None) == []


def test_the_difference_is_in_words() -> None:
    assert difference(B, [A]) == "its model is b.gguf, and a.gguf is served"
    assert difference(SHORT, [A]) == "its context is 2048 tokens, and 4096 are served"


def test_an_alias_and_the_name_of_its_file_are_the_same_model() -> None:
    assert not Served("/models/A.gguf").differs_from(Served("a"))


def test_what_is_not_reported_is_no_difference() -> None:
    assert not difference(Served(), [A])
    assert not difference(A, [Served("a.gguf")])
    assert not difference(A, [])
