"""``GET /v1/models``, from what the gateway knows: in every state of the engine, and without it.

The engine's own list, as it was when the engine was last ready, comes first: clients read what
llama-server adds (``meta``, ``models``). Until then, there is what the model's header has. Clients
of Anthropic get a list of Anthropic's form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from llama_gguf.access.moments import format_moment
from llama_gguf.engines.status import EngineStatus
from llama_gguf.errors import ModelNotFound
from llama_gguf.http1 import local_response
from llama_gguf.http1.local_response import LocalResponse
from llama_gguf.http1.request import Request, is_from_anthropic

if TYPE_CHECKING:
    from llama_gguf.gateway.services import Services

Item = dict[str, Any]

_META_OF_FACTS: Final = {
    "n_ctx_train": "trained_context",
    "n_params": "parameters",
    "size": "size_bytes",
    "ftype": "quantization",
}
"""llama-server's names of what the model's header has."""
# Where clients look for the context: OpenRouter's name, and vLLM's.
_CONTEXT_NAMES: Final = ("context_length", "max_model_len")


def respond(request: Request, services: Services) -> LocalResponse:
    """The list of the models, or one of them.

    Raises:
        ModelNotFound: the path names another model.
    """
    name = _name_in(request.head.path)
    status, aliases = services.fleet.status, services.routes.model_aliases
    items = model_items(status, aliases)
    if name is not None:
        items = [item for item in items if item["id"] == name]
        if not items:
            raise ModelNotFound(f"The model '{name}' does not exist.")
    content: object
    if is_from_anthropic(request):
        found = [_for_anthropic(item) for item in items]
        content = found[0] if name is not None else _anthropic_list(found)
    else:
        content = items[0] if name is not None else _openai_list(items, status, aliases)
    return LocalResponse(200, json.dumps(content).encode(), local_response.JSON)


def _name_in(path: bytes) -> str | None:
    from urllib.parse import unquote_to_bytes  # noqa: PLC0415

    """Of the model in *path*; None if it is the path of the list."""
    _, found, name = unquote_to_bytes(path).partition(b"/models/")
    return name.decode("utf-8", "replace") if found else None


def model_items(status: EngineStatus, aliases: Sequence[str]) -> list[Item]:
    """A model for each name: those of the engine, then *aliases* of the first.

    Args:
        status: of the engine.
        aliases: further names.
    """
    items = _reported(status) or _from_header(status)
    context = status.request_tokens or status.facts.get("context")
    if context and len(items) == 1:
        (item,) = items
        item["meta"] = {**_mapping(item.get("meta")), "n_ctx": context}
        item.update(dict.fromkeys(_CONTEXT_NAMES, context))
    known = {item["id"] for item in items}
    first = items[0] if items else _item("", status)
    return items + [first | {"id": alias} for alias in aliases if alias not in known]


def _reported(status: EngineStatus) -> list[Item]:
    """What the engine has reported, unless that was with another model."""
    data = status.model_list.get("data")
    items = [
        dict(item)
        for item in (data if isinstance(data, list) else [])
        if isinstance(item, dict) and isinstance(item.get("id"), str)
    ]
    is_of_this_model = not status.facts or status.model in {item["id"] for item in items}
    return items if is_of_this_model else []


def _from_header(status: EngineStatus) -> list[Item]:
    if not status.model:
        return []
    facts = status.facts
    meta = {name: facts[fact] for name, fact in _META_OF_FACTS.items() if fact in facts}
    return [_item(status.model, status) | {"meta": meta}]


def _item(name: str, status: EngineStatus) -> Item:
    return {
        "id": name,
        "object": "model",
        "created": int(status.since),
        "owned_by": "llamacpp",
        "aliases": [name] if name else [],
        "tags": [],
    }


def _openai_list(items: list[Item], status: EngineStatus, aliases: Sequence[str]) -> Item:
    """With llama-server's second list, which clients of Ollama read."""
    found = status.model_list.get("models")
    models = [model for model in (found if isinstance(found, list) else []) if _mapping(model)]
    names = {model.get("model") for model in models}
    models += [
        {**models[0], "name": alias, "model": alias}
        for alias in aliases
        if models and alias not in names
    ]
    return {"object": "list", "data": items, **({"models": models} if models else {})}


def _for_anthropic(item: Item) -> Item:
    """Source: https://docs.anthropic.com/en/api/models-list."""
    context = item.get(_CONTEXT_NAMES[0])
    created = item.get("created")
    if not isinstance(created, int) or not 0 <= created < 1 << 32:
        created = 0
    return {
        "type": "model",
        "id": item["id"],
        "display_name": item["id"],
        "created_at": format_moment(created),
        "lifecycle": "active",
        "max_input_tokens": context,
        "max_tokens": context,
    }


def _anthropic_list(items: list[Item]) -> Item:
    ids = [item["id"] for item in items] or [None]
    return {"data": items, "has_more": False, "first_id": ids[0], "last_id": ids[-1]}


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
