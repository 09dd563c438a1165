from __future__ import annotations

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from llama_gguf.scheduling.sessions import NO_ENGINE, SessionTable


@given(
    events=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 3)), max_size=60),
    max_sessions=st.integers(1, 4),
)
def test_the_table_is_bounded_and_forgets_what_was_not_used_for_longest(
    events: list[tuple[int, int]], max_sessions: int
) -> None:
    table = SessionTable(max_sessions)
    model: OrderedDict[int, int] = OrderedDict()

    for session, number in events:
        if number:
            table.pin(session, number)
            model[session] = number
            model.move_to_end(session)
            if len(model) > max_sessions:
                model.popitem(last=False)
        else:
            assert table.use(session) == model.get(session, NO_ENGINE)
            if session in model:
                model.move_to_end(session)
        assert len(table) == len(model) <= max_sessions
        assert all(table.engine_of(each) == model.get(each, NO_ENGINE) for each in range(1, 7))
