"""Which replicas have the model that the gateway serves, if they differ.

Two responses to one conversation should not come from different models, or be cut at different
contexts. So replicas that report another model name, or another context for a request, than the
decisive one get no requests. Decisive is, the first that applies:

1. The engines of the same machine that are ready: their supervisor decides what they load, and all
   of them serve, also while one after the other gets a new model.
2. The first ready replica, in the order of PEERS, whose model is MODEL_NAME.
3. What is served already, as long as a replica with it is ready: replicas that get a new model one
   after the other are left out until the last one with the old model has gone.
4. The first ready replica, in the order of PEERS.

What a replica does not report is no difference.
"""

from __future__ import annotations

from collections.abc import Sequence

from llama_gguf.values import Value


class Served(Value):
    """What a replica serves; empty or None where it does not report it."""

    model: str = ""
    request_tokens: int | None = None

    def differs_from(self, other: Served) -> str:
        """How, in words; empty if it does not."""
        if self.model and other.model and _stem(self.model) != _stem(other.model):
            return f"its model is {self.model}, and {other.model} is served"
        mine, theirs = self.request_tokens, other.request_tokens
        if mine and theirs and mine != theirs:
            return f"its context is {mine} tokens, and {theirs} are served"
        return ""


class Candidate(Value):
    """A replica that is ready."""

    served: Served
    is_local: bool = False
    """A supervisor on the same machine has started it."""


def decisive(
    ready: Sequence[Candidate], present: Served | None, model_name: str = ""
) -> list[Served]:
    """What may be served; the module's docstring numbers the cases.

    Args:
        ready: in order.
        present: what was decisive so far.
        model_name: MODEL_NAME, which a file's name may have too.
    """
    local = [each.served for each in ready if each.is_local]
    if local:
        return local  # 1
    wanted = _stem(model_name)
    for each in ready:
        if wanted and _stem(each.served.model) == wanted:
            return [each.served]  # 2
    if present is not None and any(not each.served.differs_from(present) for each in ready):
        return [present]  # 3
    return [each.served for each in ready[:1]]  # 4


def difference(served: Served, allowed: Sequence[Served]) -> str:
    """How *served* differs from everything that is *allowed*; empty if it may be served."""
    found = ""
    for each in allowed:
        found = served.differs_from(each)
        if not found:
            return ""
    return found


def _stem(model: str) -> str:
    """llama-server reports its alias, or else the path of its file."""
    return model.rpartition("/")[2].lower().removesuffix(".gguf")
