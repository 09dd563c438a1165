"""What is known of one exchange, a request and its response, once it is over.

``scheduling.exchange`` adds the state and the resources that it has while it is open; ``telemetry``
counts and logs the record. Neither imports the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from llama_gguf.http1.request import Request

DisconnectPhase = Literal["request", "queued", "before_first_byte", "streaming"]
"""Of an exchange whose client disconnects, in metrics and the access log."""


class Usage:
    """Token counts of one response; None for those that it did not report.

    Args:
        prompt: tokens of the prompt, including those that were *cached*.
        completion: tokens of the output.
        cached: tokens that the engine did not have to process again.
        generating: seconds that the engine took for *completion*.
        prompting: seconds that it took for the part of the prompt that was not cached.
        is_whole: whether all counts were reported; an embedding has only those of the prompt.
    """

    __slots__ = ("cached", "completion", "generating", "is_whole", "prompt", "prompting")

    def __init__(
        self,
        prompt: int | None,
        completion: int | None,
        cached: int | None,
        generating: float | None = None,
        *,
        prompting: float | None = None,
        is_whole: bool = True,
    ) -> None:
        self.prompt = prompt
        self.completion = completion
        self.cached = cached
        self.generating = generating
        self.is_whole = is_whole
        self.prompting = prompting

    def __repr__(self) -> str:
        times = (self.generating, self.prompting, self.is_whole)
        what = (self.prompt, self.completion, self.cached, *times)
        return f"Usage{what}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Usage) and repr(self) == repr(other)

    __hash__ = None  # type: ignore[assignment]


class Reservation:
    """What is reserved of the budget of a key for one request.

    Args:
        tokens: by estimate.
        milliseconds: of the engine, by estimate.
        periods: of each window of the budget, the one in which these count.
    """

    __slots__ = ("choices", "milliseconds", "periods", "tokens")

    def __init__(self, tokens: int, milliseconds: int, periods: Sequence[int]) -> None:
        self.choices = 1
        """How many outputs the request wants; llama-server reports the tokens of one."""
        self.tokens = tokens
        self.milliseconds = milliseconds
        self.periods = periods


class ExchangeRecord:
    """The facts of one exchange.

    A base class, not a ``typing.Protocol``, through which mypyc would call the interpreter for each
    attribute. Times are seconds on the loop's clock; 0.0 means that it has not happened.

    Args:
        started_at: when its head was complete.
        request: its head.
        id_bytes: the request id, as sent on the wire.
        address: of the client.
    """

    # Defaults on the class: most exchanges leave most of them unchanged, and pay nothing for them.
    key_id = "-"
    outcome = "done"
    status = 0
    bytes_in = 0
    bytes_out = 0
    queued_at = 0.0
    forwarded_at = 0.0
    first_byte_at = 0.0
    first_token_at = 0.0
    """Of a stream, whose head llama-server sends long before its first token."""
    replays = 0
    """How often it was sent again after an engine had failed it."""
    replica = ""
    """The label of the one that it was sent to last; empty if there is only one."""
    ended_at = 0.0
    """Set early where the end is known before the exchange is recorded."""
    opening = b""
    """The first bytes of the engine's response, where ``ending`` does not contain them."""
    ending = b""
    """Its last bytes."""
    usage: Usage | None = None
    """Read from these two when the exchange is recorded."""
    reservation: Reservation | None = None
    """Until the exchange is recorded, for a key with a budget."""

    def __init__(self, started_at: float, request: Request, id_bytes: bytes, address: str) -> None:
        self.started_at = started_at
        self.request = request
        self.id_bytes = id_bytes
        self.address = address

    @property
    def request_id(self) -> str:
        return self.id_bytes.decode("ascii")

    @property
    def method(self) -> str:
        return self.request.head.method_text

    @property
    def path(self) -> str:
        return self.request.head.path_text

    @property
    def queued(self) -> float:
        """Seconds it waited for a slot."""
        return (self.forwarded_at or self.ended_at) - self.queued_at if self.queued_at else 0.0

    def queue_again(self, now: float) -> None:
        """It waits for a slot once more: ``queued`` adds up, and time at an engine is no part."""
        self.queued_at = now - self.queued if self.forwarded_at else self.queued_at or now
        self.forwarded_at = 0.0

    @property
    def first_byte(self) -> float:
        """Seconds from its start to the first byte of the engine's response."""
        return self.first_byte_at - self.started_at if self.first_byte_at else 0.0

    @property
    def first_token(self) -> float:
        """Seconds from its start to the first event of a stream that contains a token."""
        return self.first_token_at - self.started_at if self.first_token_at else 0.0

    @property
    def duration(self) -> float:
        return self.ended_at - self.started_at
