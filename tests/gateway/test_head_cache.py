from __future__ import annotations

from tests.support.fakes import Rig
from tests.support.keys import OTHER_KEY
from tests.support.messages import OK, request

POST = request(body=b"{}")
HEAD = POST[:-2]
NOTHING = None, 0


def test_the_head_of_a_known_client_is_matched_by_any_connection(rig: Rig) -> None:
    rig.respond_with(OK)
    rig.send_request(POST)
    cache = rig.services.head_cache

    known, length = cache.match(HEAD)
    assert known is not None
    assert known.principal is not None
    assert (known.principal.key_id, length) == ("alice", 2)
    assert cache.match(request(body=b"x" * 12)[:-12]) == (known, 12)
    assert cache.match(request(body=b"{}", key=OTHER_KEY)[:-2]) == NOTHING


def test_it_is_forgotten_with_the_next_tick_since_it_holds_a_key(rig: Rig) -> None:
    rig.respond_with(OK)
    rig.send_request(POST)

    rig.services.tick()

    assert rig.services.head_cache.match(HEAD) == NOTHING


def test_what_it_holds_is_in_no_repr(rig: Rig) -> None:
    rig.respond_with(OK)
    rig.send_request(POST)

    known, _ = rig.services.head_cache.match(HEAD)
    assert known is not None
    assert "sk-" not in repr(known)
