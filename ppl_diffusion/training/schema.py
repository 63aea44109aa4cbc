"""The schema of configurations: what each value may be, and one line for a value that may not be it.

Tables are checked by pydantic, strictly: no text becomes a number, and no fraction a whole number. A type carries its
words, its ``description``, which complete the sentence "... must be ...".
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, NotRequired, get_args, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from typing_extensions import TypedDict

from ..models.forms import Form

Text = Annotated[str, Field(description="text")]
Count = Annotated[int, Field(ge=1, description="a whole number >= 1")]
Index = Annotated[int, Field(ge=0, description="a whole number >= 0")]
Rate = Annotated[float, Field(ge=1e-12, lt=float("inf"), description="a number >= 1e-12")]
Share = Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1")]
Factor = Annotated[float, Field(ge=0, lt=float("inf"), description="a number >= 0")]
Flag = Annotated[bool, Field(description="true or false")]
Keys = Annotated[Mapping[str, str], Field(description='a table of texts, such as {captions = "captions"}')]

Size = Annotated[int, Field(ge=1, description="whole numbers >= 1")]
Number = Annotated[int, Field(ge=0, description="whole numbers >= 0")]


class MLP(TypedDict):
    """Arguments of ``EnergyMLP``, of ``ppl_diffusion.models.networks``; those of its conditions come with the data."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")  # type: ignore[misc]
    kind: Literal["mlp"]
    size: Size
    width: NotRequired[Size]
    hidden: NotRequired[Size]
    blocks: NotRequired[Size]
    octaves: NotRequired[Number]
    classes: NotRequired[Number]
    token_size: NotRequired[Number]


class UNet(TypedDict):
    """Arguments of ``EnergyUNet``, of ``ppl_diffusion.models.networks``; those of its conditions come with the data."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")  # type: ignore[misc]
    kind: Literal["unet"]
    shape: Annotated[list[Size], Field(description="whole numbers >= 1")]
    widths: NotRequired[Annotated[list[Size], Field(description="whole numbers >= 1")]]
    blocks: NotRequired[Size]
    classes: NotRequired[Number]
    positions: NotRequired[Flag]
    token_size: NotRequired[Number]
    token_map: NotRequired[Number]


class CNN(TypedDict):
    """Arguments of ``ClassifierCNN``, of ``ppl_diffusion.models.networks``; the number of classes comes with the
    data."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid")  # type: ignore[misc]
    kind: Literal["cnn"]
    shape: Annotated[list[Size], Field(description="whole numbers >= 1")]
    widths: NotRequired[Annotated[list[Size], Field(description="whole numbers >= 1")]]
    blocks: NotRequired[Size]
    classes: NotRequired[Number]


Network = Annotated[MLP | UNet | CNN, Field(discriminator="kind")]
NETWORKS: dict[str, Any] = {"mlp": MLP, "unet": UNet, "cnn": CNN}
EXAMPLES = {"size": "size = 2", "shape": "shape = [1, 28, 28]"}


@cache
def table_of(config: type) -> TypeAdapter[dict[str, Any]]:
    """Return what validates tables with the annotations of a dataclass, and with a :data:`Network`."""
    table = TypedDict(config.__name__, get_type_hints(config, include_extras=True) | {"network": Network})  # type: ignore[misc]
    table.__pydantic_config__ = ConfigDict(strict=True, extra="forbid")  # type: ignore[attr-defined]
    return TypeAdapter(table)  # type: ignore[arg-type]


def complaint(error: ValidationError, config: type) -> str:
    """Return one line for the first value that a table of ``config`` may not have: what it must be, and what it is."""
    first = error.errors()[0]
    name, *inside = first["loc"]
    if name == "network":
        return _complaint_of_network(first["type"], inside, first["input"])
    if name == "form":
        return f"unknown form {first['input']!r} in the configuration: use one of {', '.join(get_args(Form))}"
    return f"{name} in the configuration must be {_words(config, name)}, got {first['input']!r}"


def _complaint_of_network(problem: str, inside: list[Any], value: Any) -> str:
    if inside:
        kind, option = inside[0], inside[1]
        if problem == "missing":
            return f"the network {kind!r} lacks {option}: write {EXAMPLES[option]} under [network]"
        if problem == "extra_forbidden":
            known = [name for name in get_type_hints(NETWORKS[kind]) if not name.startswith("_")]
            return f"the network {kind!r} has no {option}: use {', '.join(known)}"
        return f"{option} of the network must be {_words(NETWORKS[kind], option)}, got {value!r}"
    if not isinstance(value, Mapping) or "kind" not in value:
        return (
            f"network in the configuration must be a table with a kind, got {value!r}: write [network] and "
            'kind = "unet" under it'
        )
    if not isinstance(value["kind"], str):
        return f"kind of the network must be text, got {value['kind']!r}: write kind = 'mlp', 'unet' or 'cnn'"
    return f"unknown network {value['kind']!r}: use one of {', '.join(NETWORKS)}"


def _words(table: type, name: Any) -> str:
    """Return the description of a type in its annotation, be it optional or not required."""
    found: list[str] = []

    def search(annotation: Any) -> None:
        found.extend(str(m.description) for m in getattr(annotation, "__metadata__", ()) if isinstance(m, FieldInfo))
        for part in get_args(annotation):
            search(part)

    search(get_type_hints(table, include_extras=True)[name])
    return found[0]
