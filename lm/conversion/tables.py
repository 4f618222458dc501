"""What a family declares for conversion, and the rules that all families share.

A family is `read` (their config.json -> our Model), `write` (the way back) and `names`, a table from our modules to theirs.
In the table `L` stands for any layer, `{}` in their names for the layer's number, `{expert}` for an expert's. Leaves follow
from the module: our kernel, embedding, scale and taps are their `weight`, our bias is their `bias`. Where the table names a
leaf itself, such as `decoder/L/mixer/forward/decay`, theirs is the full name of a tensor that holds the same array, of a
scale the same vector.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from flax import traverse_util

from lm import config
from lm.config import Head, Model, Stack
from lm.conversion.settings import Hf
from lm.errors import UserError
from lm.models.transformer import abstract_params


@dataclass(frozen=True)
class Layout:
    """How a matrix of theirs is stored: [outputs, inputs] (`torch.nn.Linear`), or with `conv1d` [inputs, outputs].

    If several of ours are fused in it, its outputs form `groups`, and each group holds a slice of the first of ours, then
    one of the second, and so on. `taps`: it is a convolution over time, [outputs, inputs, taps] (`torch.nn.Conv1d`), of
    which ours is [taps, inputs, outputs]. `channels`: it is one over patches, [outputs, channels, size, size]
    (`torch.nn.Conv2d`), of which ours is [size * size * channels, outputs]. `ones`: so many axes of size 1 come before theirs.
    """

    conv1d: bool = False
    groups: int = 1
    taps: bool = False
    channels: int = 0
    ones: int = 0


@dataclass(frozen=True)
class Slice:
    """Part number `part` of the fused tensor of their module `module`."""

    module: str
    part: int = 0
    layout: Layout = Layout()


Names = Mapping[str, str | Slice]


@dataclass(frozen=True)
class Family:
    read: "Callable[[Hf], Model]"
    write: Callable[[Model], dict[str, Any]]  # the result is read back and compared, so it need not check the model
    names: Callable[[Model], Names]
    architecture: Callable[[Model], str]  # the name of their class
    prefix: str = ""  # of the trunk's names in a model with a head; a trunk saved alone lacks it
    copies: Mapping[str, str] = field(default_factory=dict)  # tensors of theirs -> the tensors that they equal
    zeros: Callable[[Model], dict[str, tuple[int, ...]]] = lambda model: {}  # tensors that only they have; they must be 0
    classifier: Callable[[Model], Names] = lambda model: {"head/out": "score"}  # names in a head with `outputs`
    defaults: Mapping[str, Any] = field(default_factory=dict)  # their config class's, for keys that a file lacks
    aliases: Mapping[str, str] = field(default_factory=dict)  # other names of keys: their `attribute_map`


def read_model(family: Family, values: Mapping[str, Any], keys: Iterable[str]) -> Model:
    """Returns the model that a config.json (`values`) and the names of its tensors (`keys`) describe."""
    c = Hf(values, keys, family.defaults, family.aliases)
    try:
        model = family.read(c)
    except UserError as error:
        text = str(error)  # without "config.json" if our own config classes refused the values
        raise UserError(text if "config.json" in text else f"config.json describes a model that cannot run: {text}") from None
    if model.decoder and model.head and model.head.outputs is None:
        model = replace(model, head=_decoder_head(family, c, model.head, alone=model.encoder is None))
    c.check_all_used(model)
    return model


def _decoder_head(family: Family, c: Hf, head: Head, *, alone: bool) -> Head | None:
    """Returns the classifier's head if the file has one, None if it holds a trunk alone, otherwise `head`."""
    for name in ("score", "classifier"):
        if alone and f"{name}.weight" in c.keys:
            return Head(tied=False, bias=f"{name}.bias" in c.keys, norm=None, outputs=c.labels())
    unprefixed = not any(key.startswith(family.prefix) for key in c.keys)
    headless = not head.tied and not c.architecture and unprefixed and not c.has_head
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
    "quick_gelu": "gelu_quick",
}


def activation(c: Hf, name: str) -> Any:
    return ACTIVATIONS[c.only(name, *ACTIVATIONS)]


def same_activation(c: Hf, name: str, value: str) -> None:
    """Raises UserError unless the key is missing or names the activation `value`, under any of its names."""
    if ACTIVATIONS.get(str(c(name, None))) != ACTIVATIONS.get(value):
        c.agrees(name, value)


def their_activation(name: str, tanh: str = "gelu_pytorch_tanh") -> str:
    return {"gelu_tanh": tanh, "gelu_quick": "quick_gelu"}.get(name, name)


def token_classifier(m: Model) -> Names:
    """The names of a decoder's classifier where the one of tokens, which has a bias, is called otherwise than that of texts."""
    return {"head/out": "classifier" if m.head and m.head.bias else "score"}


def architecture(name: str, head: str = "ForCausalLM") -> Callable[[Model], str]:
    """Returns a function from a model to the name of their class for it, which depends on the head."""

    def class_name(m: Model) -> str:
        if m.head is None:
            return f"{name}Model" if m.decoder or not name.endswith("T5") else f"{name}EncoderModel"
        if m.head.outputs is None:
            return name + head
        # Token classifiers have a bias in decoders; in encoders they lack the layer that text classifiers have before logits.
        tokens = m.head.bias if m.decoder is not None else m.head.transform is None
        return f"{name}ForTokenClassification" if tokens else f"{name}ForSequenceClassification"

    return class_name


def attention_of(block: config.Block) -> config.Attention:
    """Returns the self-attention of a block; AssertionError if it has a mixer."""
    assert block.attention is not None and block.mixer is None, "layers without attention"
    return block.attention


def canonical(model: Model) -> Model:
    """Returns the model with every field that does not change its outputs at a fixed value, so that models are equal if they
    compute the same function."""
    blank = dict(dropout=0.0)

    def block(b: config.Block) -> config.Block:
        a, ffn, mixer = b.attention, b.ffn, b.mixer
        if a is not None:
            size, kv = a.size(model.width), a.kv_heads
            scale = a.scale if a.scale is not None or a.score == "additive" else size**-0.5
            a = replace(a, head_dim=size, num_kv_heads=kv, scale=scale, **blank)
        if ffn is not None:
            ffn = replace(ffn, **blank) if isinstance(ffn, config.Mlp) else replace(ffn, capacity=None, balance=0.0, z=0.0)
        if isinstance(mixer, config.GatedLinear | config.Mamba2):
            mixer = replace(mixer, hidden=mixer.size(model.width))
        if isinstance(mixer, config.Mamba2):
            mixer = replace(mixer, chunk=1)
        return replace(b, attention=a, ffn=ffn, mixer=mixer, **blank)

    def stack(s: Stack | None) -> Stack | None:
        if s is None:
            return None
        if isinstance(s.stem, config.Patches):  # `lm.conversion.pixels` has these
            s = replace(s, stem=replace(s.stem, mean=(0.5,), std=(0.5,)))
        letters, seen = s.letters(), dict[config.Block, str]()
        blocks = [block(s.blocks[letter]) for letter in letters]
        position = s.position
        if isinstance(position, config.Rope):  # a stack's rope is that of each layer which has none of its own
            blocks = [
                replace(b, attention=replace(b.attention, rope=b.attention.rope or position))
                if b.attention is not None and b.mixer is None
                else b
                for b in blocks
            ]
            position = None
        pattern = "".join(seen.setdefault(b, chr(ord("A") + len(seen))) for b in blocks)
        by_letter = {letter: b for b, letter in seen.items()}
        return replace(s, blocks=by_letter, pattern=pattern, position=position, scan=False, remat="none", keep=(), **blank)

    return replace(
        model,
        encoder=stack(model.encoder),
        decoder=stack(model.decoder),
        head=replace(model.head, norm=None) if model.head and model.head.transform is None else model.head,
        vocab_size=model.vocab_size if model.reads_tokens else 1,
        embed=replace(model.embed, token_dropout=0.0, **blank),
        init_std=None,
        embed_init_std=0.02,
        dtype="float32",
        param_dtype="float32",
        kernel="plain",
    )


@dataclass(frozen=True)
class Part:
    """The part of one of our leaves that a tensor of theirs holds: a matrix [inputs, outputs], a table, a vector, the taps of
    a convolution [taps, *channels] (theirs: [channels, 1, taps]), or an array that is theirs as it is."""

    path: str
    index: tuple[int, ...]
    shape: tuple[int, ...]  # of leaf[index]
    # The leaf's name: kernel, bias, scale, embedding or taps; "array" if it is theirs as it is, "conv" of `Layout.taps`.
    kind: str
    channels: int = 0  # of `Layout.channels`

    def rows(self, leaf: np.ndarray) -> np.ndarray:
        """Returns the part as [outputs, inputs] if it is a matrix, otherwise as it is."""
        part = leaf[self.index]
        if self.channels:  # [rows * columns * channels, outputs] -> [outputs, channels, rows, columns]
            return part.reshape(self._patch()).transpose(3, 2, 0, 1)
        if self.kind in ("taps", "conv"):
            return part.reshape(len(part), -1).T[:, None] if self.kind == "taps" else part.T
        return part.reshape(self._matrix()).T if self.kind == "kernel" else part.reshape(self.rows_shape())

    def put(self, leaf: np.ndarray, rows: np.ndarray) -> None:
        rows = rows.transpose(2, 3, 1, 0) if self.channels else rows
        rows = (
            rows[:, 0].T if self.kind == "taps" else rows.T if self.kind in ("kernel", "conv") and not self.channels else rows
        )
        leaf[self.index] = rows.reshape(self.shape)

    def _patch(self) -> tuple[int, int, int, int]:
        size = round((self.shape[0] / self.channels) ** 0.5)
        return size, size, self.channels, self.shape[1]

    def rows_shape(self) -> tuple[int, ...]:
        if self.channels:
            rows, columns, channels, outputs = self._patch()
            return outputs, channels, rows, columns
        if self.kind in ("bias", "scale"):  # attention's are [heads, head dim]
            return (int(np.prod(self.shape)),)
        if self.kind == "taps":
            return (int(np.prod(self.shape[1:])), 1, self.shape[0])
        if self.kind == "conv":
            return self.shape[::-1]
        return self._matrix()[::-1] if self.kind == "kernel" else self.shape

    def _matrix(self) -> tuple[int, int]:
        # Attention's output projection is [heads, head dim, width]; all other kernels have one axis of inputs.
        inputs = 2 if self.path.endswith("/out/kernel") and len(self.shape) == 3 else 1
        return int(np.prod(self.shape[:inputs])), int(np.prod(self.shape[inputs:]))


@dataclass(frozen=True)
class Tensor:
    """One tensor of theirs, and the parts of ours that it holds, in order."""

    key: str
    parts: tuple[Part, ...]
    layout: Layout

    @property
    def shape(self) -> tuple[int, ...]:
        shapes = [p.rows_shape() for p in self.parts]
        shape = (sum(s[0] for s in shapes), *shapes[0][1:])
        return (1,) * self.layout.ones + (shape[::-1] if self.layout.conv1d else shape)

    def join(self, leaves: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns their tensor, made from our leaves (path -> array)."""
        rows = [p.rows(leaves[p.path]) for p in self.parts]
        if len(rows) > 1:
            grouped = [r.reshape(self.layout.groups, -1, *r.shape[1:]) for r in rows]
            rows = [np.concatenate(grouped, axis=1).reshape(-1, *rows[0].shape[1:])]
        return np.ascontiguousarray(rows[0].T if self.layout.conv1d else rows[0]).reshape(self.shape)

    def split(self, theirs: np.ndarray, leaves: Mapping[str, np.ndarray]) -> None:
        """Writes their tensor into our leaves (path -> array), in place."""
        rows = theirs.T if self.layout.conv1d else theirs.reshape(theirs.shape[self.layout.ones :])
        grouped = rows.reshape(self.layout.groups, -1, *rows.shape[1:])
        start = 0
        for p in self.parts:
            end = start + p.rows_shape()[0] // self.layout.groups
            p.put(leaves[p.path], grouped[:, start:end].reshape(p.rows_shape()))
            start = end


LAYER = re.compile(r"(encoder|decoder)/group(?:_(\d+)|s)/block_(\d+)/(.+)")


def param_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the model's parameters by path: `{"embed/tokens/embedding": (512, 64), ...}`."""
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(abstract_params(model), sep="/").items()}


def tensors(family: Family, model: Model, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Returns their tensors by name, for our parameters (path -> shape). UserError for a parameter that has no name there."""
    names, found = dict(family.names(model)), dict[str, list[tuple[int, Part, Layout]]]()
    if model.head and model.head.outputs is not None:
        names |= family.classifier(model)
    for path, shape in shapes.items():
        module, kind = path.rpartition("/")[::2]
        at = LAYER.fullmatch(module)
        if at is None:
            layers = [((), None)]  # (index into the leaf, number of the layer)
        else:
            stack: Stack = getattr(model, at[1])
            module, size = f"{at[1]}/L/{at[4]}", len(stack.pattern)
            if at[2] is None:  # scanned: the first axis counts groups
                layers = [((group,), group * size + int(at[3])) for group in range(shape[0])]
            else:
                layers = [((), int(at[2]) * size + int(at[3]))]
        suffix, name = ".bias" if kind == "bias" else ".weight", names.get(module)
        if f"{module}/{kind}" in names:
            suffix, name, kind = "", names[f"{module}/{kind}"], kind if kind == "scale" else "array"
        if name is None:
            raise UserError(f"this family has no tensor for our {path}")
        name = Slice(name) if isinstance(name, str) else name
        kind = "conv" if name.layout.taps and kind == "kernel" else kind
        for index, layer in layers:
            rest = shape[len(index) :]
            experts = range(rest[0]) if "{expert}" in name.module else [None]  # the next axis counts experts
            for expert in experts:
                full_index = index if expert is None else (*index, expert)
                key = f"{name.module.format(layer, expert=expert)}{suffix}"
                channels = name.layout.channels if kind == "kernel" else 0
                part = Part(path, full_index, shape[len(full_index) :], kind, channels)
                found.setdefault(key, []).append((name.part, part, name.layout))
    prefix = family.prefix if model.head else ""

    def one(key: str, parts: list[tuple[int, Part, Layout]]) -> Tensor:
        parts = sorted(parts, key=lambda p: p[0])
        return Tensor(key, tuple(p for _, p, _ in parts), parts[0][2])

    drop = lambda key: key.removeprefix(family.prefix) if not prefix else key
    return {drop(key): one(drop(key), parts) for key, parts in found.items()}


def layers(stack: str, module: str, **ours: str | Slice) -> dict[str, str | Slice]:
    """Returns names in a layer: `layers("decoder", "h.{}.", attention__query="attn.q")` is
    `{"decoder/L/attention/query": "h.{}.attn.q"}`."""
    table: dict[str, str | Slice] = {}
    for name, theirs in ours.items():
        full = replace(theirs, module=module + theirs.module) if isinstance(theirs, Slice) else module + theirs
        table[f"{stack}/L/{name.replace('__', '/')}"] = full
    return table


def projections(module: str = "self_attn.{}_proj", out: str = "o", ours: str = "attention") -> dict[str, str]:
    """Returns names for `layers`: query, key and value by their first letters in `module`, the output by `out`."""
    theirs = dict(query="q", key="k", value="v", out=out)
    return {f"{ours}__{name}": module.replace("{}", letter) for name, letter in theirs.items()}


def fused(module: str, *ours: str, layout: Layout = Layout()) -> dict[str, Slice]:
    """Returns names for `layers`, where one tensor of theirs holds several of ours in this order."""
    return {name: Slice(module, i, layout) for i, name in enumerate(ours)}


def differences(a: Model, b: Model) -> list[str]:
    """Returns where two models differ, each as `path: value in a is not value in b`."""

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
