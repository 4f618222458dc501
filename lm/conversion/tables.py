"""What a family says for its conversion, and how one tensor of theirs holds those of ours. The rules that all share.

A family is three things: `read` (their config.json -> our Model), `write` (back), and `names`, a table from our modules to
theirs. In the table `L` stands for a layer, `{}` in their names for its number, `{expert}` for an expert's. Every leaf
follows from the module: our kernel, table and scale are their `weight`, our bias their `bias`.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lm import config
from lm.config import Head, Model, Stack
from lm.conversion.settings import Hf
from lm.errors import UserError


@dataclass(frozen=True)
class Layout:
    """Theirs is [outputs, inputs] (`torch.nn.Linear`), or if `conv1d` [inputs, outputs]. Where several of ours lie in one of
    theirs, the outputs are in `groups`: each holds its share of the first of ours, then of the second, ..."""

    conv1d: bool = False
    groups: int = 1


@dataclass(frozen=True)
class At:
    """A place in a tensor of theirs: its module, and which of the parts in it."""

    module: str
    part: int = 0
    layout: Layout = Layout()


Names = Mapping[str, str | At]


@dataclass(frozen=True)
class Family:
    read: "Callable[[Hf], Model]"
    write: Callable[[Model], dict[str, Any]]  # raises or returns; what it cannot say shows when it is read back
    names: Callable[[Model], Names]
    architecture: Callable[[Model], str]
    prefix: str = ""  # of all names of a model with a head; a bare trunk goes without
    copies: Mapping[str, str] = field(default_factory=dict)  # tensors of theirs that repeat another
    zeros: Callable[[Model], dict[str, tuple[int, ...]]] = lambda model: {}  # theirs alone; anything but 0 is refused
    classifier: Callable[[Model], Names] = lambda model: {"head/out": "score"}  # of a head that is not over the vocabulary
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of their config class, for keys that a file leaves out
    aliases: Mapping[str, str] = field(default_factory=dict)  # other names of keys (their `attribute_map`)


def read_model(family: Family, values: Mapping[str, Any], keys: Iterable[str]) -> Model:
    """The model that a config.json and the names of its tensors describe."""
    c = Hf(values, keys, family.defaults, family.aliases)
    try:
        model = family.read(c)
    except UserError as error:  # of the model's own fields, if it does not name config.json
        said = str(error)
        raise UserError(said if "config.json" in said else f"config.json describes a model that cannot run: {said}") from None
    if model.decoder and model.head and model.head.outputs is None:
        model = replace(model, head=_decoder_head(family, c, model.head, alone=model.encoder is None))
    c.check_all_used(model)
    return model


def _decoder_head(family: Family, c: Hf, head: Head, *, alone: bool) -> Head | None:
    """A classifier's head if the file has one, None if it is a trunk that was saved without a head, otherwise `head`."""
    if alone and "score.weight" in c.keys:
        return Head(tied=False, bias="score.bias" in c.keys, norm=None, outputs=c.labels())
    bare = not any(key.startswith(family.prefix) for key in c.keys)
    headless = not head.tied and not c.architecture and bare and not c.has_head
    return None if c.is_trunk or headless else head


ACTIVATIONS = {  # theirs (transformers.activations.ACT2FN) -> ours
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def activation(c: Hf, name: str) -> Any:
    return ACTIVATIONS[c.only(name, *ACTIVATIONS)]


def same_activation(c: Hf, name: str, value: str) -> None:
    """Checks a key that repeats the activation `value`, perhaps by another of its names."""
    if ACTIVATIONS.get(str(c(name, None))) != ACTIVATIONS.get(value):
        c.agrees(name, value)


def their_activation(name: str, tanh: str = "gelu_pytorch_tanh") -> str:
    return tanh if name == "gelu_tanh" else name


def architecture(name: str, head: str = "ForCausalLM") -> Callable[[Model], str]:
    """A function from a model to the name of their class for it, which depends on the head."""

    def of(m: Model) -> str:
        if m.head is None:
            return f"{name}Model" if m.decoder or not name.endswith("T5") else f"{name}EncoderModel"
        if m.head.outputs is None:
            return name + head
        # Of decoders, only a classifier of tokens has a bias; of encoders, only one of texts has a layer before its logits.
        tokens = m.head.bias if m.decoder is not None else m.head.transform is None
        return f"{name}ForTokenClassification" if tokens else f"{name}ForSequenceClassification"

    return of


def canonical(model: Model) -> Model:
    """The model with what says nothing of its function set to one value: two that compute alike are equal."""
    blank = dict(dropout=0.0)

    def block(b: config.Block) -> config.Block:
        a = b.attention
        size, kv = a.size(model.width), a.kv_heads
        scale = a.scale if a.scale is not None else size**-0.5
        a = replace(a, head_dim=size, num_kv_heads=kv, scale=float(scale), **blank)
        ffn = replace(b.ffn, **blank) if isinstance(b.ffn, config.Mlp) else replace(b.ffn, capacity=None, balance=0.0, z=0.0)
        return replace(b, attention=a, ffn=ffn, **blank)

    def stack(s: Stack | None) -> Stack | None:
        if s is None:
            return None
        letters, seen = s.letters(), dict[config.Block, str]()
        of = [block(s.blocks[letter]) for letter in letters]
        position = s.position
        if isinstance(position, config.Rope):  # said of the stack or of each layer
            of = [replace(b, attention=replace(b.attention, rope=b.attention.rope or position)) for b in of]
            position = None
        pattern = "".join(seen.setdefault(b, chr(ord("A") + len(seen))) for b in of)
        blocks = {letter: b for b, letter in seen.items()}
        return replace(s, blocks=blocks, pattern=pattern, position=position, scan=False, remat="none", **blank)

    return replace(
        model,
        encoder=stack(model.encoder),
        decoder=stack(model.decoder),
        embed=replace(model.embed, **blank),
        init_std=None,
        embed_init_std=0.02,
        dtype="float32",
        param_dtype="float32",
    )


@dataclass(frozen=True)
class Part:
    """A slice of a leaf of ours that lies in a tensor of theirs: a matrix [inputs, outputs], a table or a vector."""

    path: str
    index: tuple[int, ...]
    shape: tuple[int, ...]  # of the slice
    kind: str  # the leaf's name

    def rows(self, leaf: np.ndarray) -> np.ndarray:
        """[outputs, inputs], or the table or vector itself."""
        part = leaf[self.index]
        return part.reshape(self._matrix()).T if self.kind == "kernel" else part.reshape(self.rows_shape())

    def put(self, leaf: np.ndarray, rows: np.ndarray) -> None:
        leaf[self.index] = (rows.T if self.kind == "kernel" else rows).reshape(self.shape)

    def rows_shape(self) -> tuple[int, ...]:
        if self.kind == "bias":  # of heads: [heads, head dim]
            return (int(np.prod(self.shape)),)
        return self._matrix()[::-1] if self.kind == "kernel" else self.shape

    def _matrix(self) -> tuple[int, int]:
        # Attention's output is [heads, head dim, width], all others have one axis of inputs.
        inputs = 2 if self.path.endswith("/out/kernel") and len(self.shape) == 3 else 1
        return int(np.prod(self.shape[:inputs])), int(np.prod(self.shape[inputs:]))


@dataclass(frozen=True)
class Tensor:
    """One tensor of theirs and the parts of ours in it."""

    key: str
    parts: tuple[Part, ...]
    layout: Layout

    @property
    def shape(self) -> tuple[int, ...]:
        shapes = [p.rows_shape() for p in self.parts]
        shape = (sum(s[0] for s in shapes), *shapes[0][1:])
        return shape[::-1] if self.layout.conv1d else shape

    def join(self, leaves: Mapping[str, np.ndarray]) -> np.ndarray:
        rows = [p.rows(leaves[p.path]) for p in self.parts]
        if len(rows) > 1:
            grouped = [r.reshape(self.layout.groups, -1, *r.shape[1:]) for r in rows]
            rows = [np.concatenate(grouped, axis=1).reshape(-1, *rows[0].shape[1:])]
        return np.ascontiguousarray(rows[0].T if self.layout.conv1d else rows[0])

    def split(self, theirs: np.ndarray, leaves: Mapping[str, np.ndarray]) -> None:
        """Writes the parts into our leaves."""
        rows = theirs.T if self.layout.conv1d else theirs
        grouped = rows.reshape(self.layout.groups, -1, *rows.shape[1:])
        start = 0
        for p in self.parts:
            end = start + p.rows_shape()[0] // self.layout.groups
            p.put(leaves[p.path], grouped[:, start:end].reshape(p.rows_shape()))
            start = end


LAYER = re.compile(r"(encoder|decoder)/group(?:_(\d+)|s)/block_(\d+)/(.+)")


def tensors(family: Family, model: Model, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Their tensors by name, for parameters of these shapes by path. A leaf of ours that the table does not name raises."""
    names, found = dict(family.names(model)), dict[str, list[tuple[int, Part, Layout]]]()
    if model.head and model.head.outputs is not None:
        names |= family.classifier(model)
    for path, shape in shapes.items():
        module, kind = path.rpartition("/")[::2]
        at = LAYER.fullmatch(module)
        if at is None:
            places = [((), None)]
        else:
            stack: Stack = getattr(model, at[1])
            module, size = f"{at[1]}/L/{at[4]}", len(stack.pattern)
            if at[2] is None:  # scanned: the first axis is of groups
                places = [((t,), t * size + int(at[3])) for t in range(shape[0])]
            else:
                places = [((), int(at[2]) * size + int(at[3]))]
        name = names.get(module)
        if name is None:
            raise UserError(f"this family has no place for our {path}")
        name = At(name) if isinstance(name, str) else name
        suffix = "bias" if kind == "bias" else "weight"
        for index, layer in places:
            rest = shape[len(index) :]
            experts = range(rest[0]) if "{expert}" in name.module else [None]  # the next axis is of experts
            for expert in experts:
                where = index if expert is None else (*index, expert)
                key = f"{name.module.format(layer, expert=expert)}.{suffix}"
                part = Part(path, where, shape[len(where) :], kind)
                found.setdefault(key, []).append((name.part, part, name.layout))
    prefix = family.prefix if model.head else ""

    def one(key: str, parts: list[tuple[int, Part, Layout]]) -> Tensor:
        parts = sorted(parts, key=lambda p: p[0])
        return Tensor(key, tuple(p for _, p, _ in parts), parts[0][2])

    drop = lambda key: key.removeprefix(family.prefix) if not prefix else key
    return {drop(key): one(drop(key), parts) for key, parts in found.items()}


def layers(stack: str, module: str, **ours: str | At) -> dict[str, str | At]:
    """`{"decoder/L/attention/query": "h.{}.attn.q"}` from `module="h.{}."` and `attention__query="attn.q"`."""
    table: dict[str, str | At] = {}
    for name, theirs in ours.items():
        full = replace(theirs, module=module + theirs.module) if isinstance(theirs, At) else module + theirs
        table[f"{stack}/L/{name.replace('__', '/')}"] = full
    return table


def projections(module: str = "self_attn.{}_proj", out: str = "o", ours: str = "attention") -> dict[str, str]:
    """Queries, keys and values under their first letters, and the output under `out`."""
    theirs = dict(query="q", key="k", value="v", out=out)
    return {f"{ours}__{name}": module.replace("{}", letter) for name, letter in theirs.items()}


def fused(module: str, *ours: str, layout: Layout = Layout()) -> dict[str, At]:
    """Several of ours in one of theirs, in this order."""
    return {name: At(module, i, layout) for i, name in enumerate(ours)}


def differences(a: Model, b: Model) -> list[str]:
    """Where two models differ, as `path: a is not b`."""

    def walk(x: Any, y: Any, path: str) -> Iterable[str]:
        if dataclasses.is_dataclass(x) and type(x) is type(y):
            for f in dataclasses.fields(x):
                yield from walk(getattr(x, f.name), getattr(y, f.name), f"{path}.{f.name}" if path else f.name)
        elif isinstance(x, Mapping) and isinstance(y, Mapping) and x.keys() == y.keys():
            for k in x:
                yield from walk(x[k], y[k], f"{path}.{k}")
        elif x != y:
            yield f"{path}: {x!r} is not {y!r}"

    return list(walk(a, b, ""))
