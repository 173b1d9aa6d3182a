"""Which weights of a model are kept in which format, and the one grammar that says so.

    q8                              everything
    0-11:q8,12-23:nf4               layers, from 0; what is not named is kept as usual
    bf16,12-:q8,head:f16,emb:f32    `12-` is to the last layer, a format alone is for all the rest

Every layer may be named once. `head` is the matrices that belong to no layer, `emb` the embedding
tables, which a step reads a few rows of and which are never quantised.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from kernelforge_runtime.dtypes import BF16, F16, F32, NF4, Q8, QUANTIZED, DType
from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.quantize import table_format

WEIGHT_FORMATS: dict[str, DType] = {d.name: d for d in (F32, BF16, F16, Q8, NF4)}
"""By the names that users write, from the finest to the coarsest."""
FORMATS_KEY = "kernelforge.formats"
"""Metadata of a converted file: the formats it is in, in this grammar."""
HEAD, EMBEDDING = "head", "emb"
_GRAMMAR = "entries are FORMAT, LAYER:FORMAT, FIRST-LAST:FORMAT, head:FORMAT or emb:FORMAT"
_DIGITS = 9
_SHOWN = 60


def weight_format(name: str) -> DType:
    """The format of this name.

    Raises:
        ModelError: there is none.
    """
    if name not in WEIGHT_FORMATS:
        raise ModelError(f"weight format {_short(name)}: there are {', '.join(WEIGHT_FORMATS)}")
    return WEIGHT_FORMATS[name]


@dataclass(frozen=True)
class WeightFormats:
    """The formats of one model's weights.

    Attributes:
        usual: of whatever nothing else here is for.
        layers: of each layer; empty where all are as usual.
        head: of matrices outside of layers.
        embedding: of embedding tables.
    """

    usual: DType
    layers: tuple[DType, ...] = ()
    head: DType | None = None
    embedding: DType | None = None

    def matrix(self, layer: int | None) -> DType:
        """The format that a matrix of this layer, or of none, is asked to be kept in."""
        if layer is None:
            return self.head or self.usual
        return self.layers[layer] if self.layers else self.usual

    def stack(self, layers: Iterable[int | None]) -> DType:
        """The format of matrices of these layers in one stack: the finest of theirs."""
        order = list(WEIGHT_FORMATS.values())
        return min((self.matrix(layer) for layer in layers), key=order.index)

    @property
    def table(self) -> DType:
        """The format that embedding tables are kept in."""
        return table_format(self.embedding or self.usual)

    @property
    def asked(self) -> frozenset[DType]:
        """Every format that some matrix is asked to be kept in."""
        return frozenset({*(self.layers or (self.usual,)), self.head or self.usual})

    @property
    def name(self) -> str:
        """As users write it, in one way only: a format alone, or every layer, head and emb."""
        matrices = self.asked
        if len(matrices) == 1 and self.table == table_format(*matrices):
            return next(iter(matrices)).name
        runs: list[tuple[int, int, DType]] = []
        for i, form in enumerate(self.layers):
            if runs and runs[-1][2] == form:
                runs[-1] = (runs[-1][0], i, form)
            else:
                runs.append((i, i, form))
        spans = [f"{a}:{form}" if a == b else f"{a}-{b}:{form}" for a, b, form in runs]
        if not spans:
            spans = [self.usual.name]
        return ",".join([*spans, f"{HEAD}:{self.matrix(None)}", f"{EMBEDDING}:{self.table}"])

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class _Entry:
    """One entry: layers from `first` to `last` (None: the last there is), or a named place."""

    text: str
    form: DType
    place: str = ""
    first: int = 0
    last: int | None = None


@dataclass(frozen=True)
class FormatSpec:
    """What was asked, before a model is known.

    Attributes:
        text: as it was written.
    """

    text: str
    entries: tuple[_Entry, ...]

    @property
    def usual(self) -> DType | None:
        """The format for all that is not named; None where none was given."""
        return next((e.form for e in self.entries if e.place == "rest"), None)

    def of(self, layers: int, usual: DType, under: WeightFormats | None = None) -> WeightFormats:
        """The formats of a model.

        Args:
            layers: that it has.
            usual: what it is kept in where nothing was asked.
            under: what holds in place of `usual`, but where a format is given for all the rest.

        Raises:
            ModelError: it has no such layer, or one is named twice.
        """
        made = under if under and self.usual is None else WeightFormats(self.usual or usual)
        found: list[tuple[DType, _Entry] | None] = [None] * layers
        for entry in self.entries:
            if entry.place == HEAD:
                made = replace(made, head=entry.form)
            if entry.place == EMBEDDING:
                made = replace(made, embedding=entry.form)
            if entry.place:
                continue
            last = layers - 1 if entry.last is None else entry.last
            if not entry.first <= last < layers:
                has = f"0 to {layers - 1}" if layers else "none"
                raise self._wrong(entry.text, f"this model has {layers} layers, {has}")
            for i in range(entry.first, last + 1):
                if (other := found[i]) is not None:
                    raise self._wrong(entry.text, f"{other[1].text!r} names layer {i} already")
                found[i] = entry.form, entry
        if any(found):
            chosen = tuple(made.matrix(i) if f is None else f[0] for i, f in enumerate(found))
            made = replace(made, layers=chosen)
        return made

    def _wrong(self, entry: str, why: str) -> ModelError:
        return ModelError(f"weight formats {_short(self.text)}: entry {_short(entry)}: {why}")


def parse_formats(*texts: str | None) -> FormatSpec:
    """What the texts ask together; see this module for the grammar. None asks nothing.

    Raises:
        ModelError: an entry is none, there is no such format, or a place is named twice.
    """
    text = ",".join(t for t in texts if t is not None)
    if not text:
        return FormatSpec("", ())
    if "," not in text and ":" not in text:
        return FormatSpec(text, (_Entry(text, weight_format(text.strip()), "rest"),))
    spec, entries = FormatSpec(text, ()), list[_Entry]()
    for piece in text.split(","):
        entry = _entry(spec, piece.strip())
        for other in entries:
            if entry.place and entry.place == other.place:
                what = "everything else" if entry.place == "rest" else entry.place
                raise spec._wrong(entry.text, f"{other.text!r} is for {what} already")
            if not entry.place and not other.place and _overlap(entry, other):
                layer = max(entry.first, other.first)
                raise spec._wrong(entry.text, f"{other.text!r} names layer {layer} already")
        entries.append(entry)
    return FormatSpec(text, tuple(entries))


def _entry(spec: FormatSpec, text: str) -> _Entry:
    place, colon, name = (part.strip() for part in text.rpartition(":"))
    if not name:
        raise spec._wrong(text, _GRAMMAR)
    try:
        form = weight_format(name)
    except ModelError as error:
        raise spec._wrong(text, str(error)) from None
    if not colon:
        return _Entry(text, form, "rest")
    if place == EMBEDDING and form in QUANTIZED:
        raise spec._wrong(
            text, f"embeddings are f32, bf16 or f16 and not {form}: a step reads few rows of them"
        )
    if place in (HEAD, EMBEDDING):
        return _Entry(text, form, place)
    low, dash, high = (part.strip() for part in place.partition("-"))
    if not _is_number(low) or (high and not _is_number(high)):
        raise spec._wrong(text, _GRAMMAR)
    first = int(low)
    last = (int(high) if high else None) if dash else first
    if last is not None and last < first:
        raise spec._wrong(text, f"its last layer is before its first: {last}-{first} was meant?")
    return _Entry(text, form, "", first, last)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS


def _overlap(one: _Entry, other: _Entry) -> bool:
    ends = [float("inf") if e.last is None else e.last for e in (one, other)]
    return one.first <= ends[1] and other.first <= ends[0]


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "...")
