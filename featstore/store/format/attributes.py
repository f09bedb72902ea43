"""What the attributes of a store's documents may say: models that are checked before anything is read from them."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from featstore.errors import FormatError
from featstore.store.format.limits import LONGEST, MAX_BLOCK_ROWS, steers

Compression = Literal["zstd", "blosc"]
DType = Literal["float16", "float32", "float64", "uint8"]
KINDS = ("images", "tensors", "rows", "checksums")
FILE = re.compile(r"zarr\.json|c(\.[0-9]{1,10}){1,9}")
MOST_SEGMENTS = 4096
SIDE = 1 << 31
"""The most of blocks, features, copies or pixels in one direction."""


def _plain(text: str) -> str:
    if steers(text):
        raise ValueError("it has control characters")
    return text


def _key(text: str) -> str:
    folder, _, last = text.rpartition("/")
    kind, _, name = folder.partition("/")
    if kind not in KINDS or "/" in name or name in (".", "..") or steers(name) or not FILE.fullmatch(last):
        raise ValueError("a store has no such file")
    return text


Name = Annotated[str, StringConstraints(min_length=1, max_length=LONGEST), AfterValidator(_plain)]
Count = Annotated[int, Field(ge=1, lt=SIDE)]
Key = Annotated[str, StringConstraints(max_length=LONGEST), AfterValidator(_key)]
"""Of a document, or a chunk of a small array: nothing that leads out of the store."""
Digest = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{16})?$")]


class _Facts(BaseModel):
    """Fields that are read; others may be there and are kept as they are."""

    model_config = ConfigDict(strict=True, extra="ignore")


class _About(_Facts):
    format: int
    block_rows: Annotated[int, Field(ge=1, le=MAX_BLOCK_ROWS)]


class RootAttributes(_Facts):
    """Of the root."""

    featstore: _About
    sums: dict[Key, Annotated[list[Digest], Field(min_length=1, max_length=2)]] = {}


class _Weights(_Facts):
    sha256: str | None = None
    random_seed: int | None = None

    @model_validator(mode="after")
    def _known(self) -> "_Weights":
        if self.sha256 is None and self.random_seed is None:
            raise ValueError("neither sha256 nor random_seed")
        return self


Pair = Annotated[list[Count], Field(min_length=2, max_length=2)]


class _View(_Facts):
    size: Pair
    grid: Pair
    block: Pair | None = None
    augmentation: dict[str, Any] | None = None


class _Identity(_Facts):
    """The facts of an identity that are read without being asked for by name."""

    architecture: str | None = None
    dtype: DType | None = None
    arithmetic: str | None = None
    pooling: str | None = None
    layer: str | None = None
    weights: _Weights | None = None
    view: _View | None = None
    normalisation: dict[str, Any] | None = None
    options: dict[str, Any] = {}
    columns: list[str] = []


class _Segment(_Facts):
    name: Name
    hash: str
    blocks: Count
    width: Count
    copies: Count | None = None
    identity: _Identity


class _Run(_Facts):
    photos: str | None = None
    started: str | None = None


class TensorAttributes(_Facts):
    """Of a tensor's array, and of its record."""

    layout: Literal["stack", "concat", "pixels"]
    segments: Annotated[list[_Segment], Field(min_length=1, max_length=MOST_SEGMENTS)]
    missing: list[Name] = []
    row_shape: Annotated[list[Count], Field(min_length=1, max_length=8)]
    dtype: DType
    compress: Compression | None = None
    provenance: list[_Run] = []
    replaced_by: Name | None = None


Model = TypeVar("Model", bound=BaseModel)


def checked(model: type[Model], attributes: Mapping[str, Any], what: str) -> Model:
    """The attributes as their model has them.

    Args:
        what: how the message begins.

    Raises:
        FormatError: they do not fit; names the first field and what is wrong with it.
    """
    try:
        return model.model_validate(attributes)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise FormatError(f"{what}: {ascii(place)[1:-1][:200]}: {first['msg']}") from error
