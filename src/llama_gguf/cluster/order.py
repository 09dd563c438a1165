"""What `llama-gguf ray up` orders, and what an engine reports.

Ray passes them on between machines as plain dictionaries, which every version of this package can
read, so that a version that differs is noticed and reported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from llama_gguf.cluster.scaling import Bounds
from llama_gguf.engines.status import ChildState


@dataclass(frozen=True, slots=True)
class Order:
    """Which engines there are to be."""

    model: str
    """For people."""
    bounds: Bounds
    idle_seconds: float
    """Without need, after which an engine is stopped."""
    gpus: float
    """Of each engine."""
    cpus: float
    """Likewise."""
    port: int
    """Of the controller, for gateways."""
    drain_seconds: float
    """That requests may take to finish when everything is taken down."""
    version: str
    """Of llama_gguf."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Those of the engines that are set, as text, by name. The others are up to each machine."""
    key: str = field(default="", repr=False)
    """BACKEND_API_KEY."""

    def to_fields(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Order:
        """Undo ``to_fields``."""
        return cls(**{**fields, "bounds": Bounds(**fields["bounds"])})


@dataclass(frozen=True, slots=True)
class Identity:
    """What engines must have in common, so that it does not matter which one responds."""

    model: str
    """Its name."""
    fingerprint: str
    """Of the model's files."""
    engine_version: str

    def difference(self, served: Identity) -> str:
        """How it differs from what is *served*, and what to do; empty if it does not."""
        if self.engine_version != served.engine_version:
            return (
                f"its llama-server has version {self.engine_version}, and the others have "
                f"{served.engine_version}; install the same on each machine"
            )
        if self.model != served.model:
            return f"its model is {self.model}, and the others have {served.model}"
        if self.fingerprint != served.fingerprint:
            return (
                f"its file of {self.model} differs from that of the others; remove it from "
                "MODELS_DIR of that machine, so that it is fetched again"
            )
        return ""


@dataclass(frozen=True, slots=True)
class Report:
    """The state of one engine."""

    machine: str
    """The address of its machine."""
    state: ChildState
    address: str = ""
    """As of ``EngineAddress.key``; empty until it is known."""
    detail: str = ""
    progress: float | None = None
    slots: int | None = None
    model: str = ""
    """The name that llama-server reports; empty until it is ready."""
    identity: Identity | None = None
    """None until it is known."""
    log_file: str = ""
    """Of llama-server, on its machine."""

    def to_fields(self) -> dict[str, Any]:
        return {**asdict(self), "state": str(self.state)}

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Report:
        """Undo ``to_fields``, also of another version, which may have other fields."""
        known = {name: fields[name] for name in cls.__slots__ if name in fields}
        identity = known.get("identity")
        return cls(
            **{
                **known,
                "state": ChildState(known["state"]),
                "identity": identity and Identity(**identity),
            }
        )
