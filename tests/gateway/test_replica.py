from __future__ import annotations

from tests.support.fakes import NewRig, Rig
from tests.support.keys import BACKEND_KEY
from tests.support.messages import request


def test_a_request_has_the_head_lines_of_the_engine_that_it_was_granted(rig: Rig) -> None:
    rig.send_request(request(body=b"{}"))

    assert rig.replica.header_lines in rig.requests[0]
    assert b"Authorization: Bearer %b\r\n" % BACKEND_KEY.encode() in rig.requests[0]


def test_its_repr_has_its_state_and_no_key(new_rig: NewRig) -> None:
    replica = new_rig(port_backend=8081).replica

    assert repr(replica) == "<Replica <EngineAddress 127.0.0.1:8081> ready>"
