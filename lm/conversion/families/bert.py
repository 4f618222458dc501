"""BERT (as are MiniLM and the small BERTs), RoBERTa, XLM-RoBERTa, CamemBERT, DistilBERT, ELECTRA's generator and
discriminator, ModernBERT.

A classifier keeps its head, which here gives logits for every token; those of a text classifier of theirs are the first
token's.
"""

from dataclasses import replace
from typing import Any

from lm.config import Attention, Block, Embed, Head, Learned, Mlp, Model, Norm, Rope, Stack
from lm.conversion.families.llama import block_of, mlp_of, read_layer_types, sizes
from lm.conversion.settings import Hf
from lm.conversion.tables import (
    Family,
    Names,
    activation,
    architecture,
    attention_of,
    fused,
    layers,
    projections,
    their_activation,
)
from lm.errors import UserError

SIZES = dict(
    width="hidden_size",
    layers="num_hidden_layers",
    heads="num_attention_heads",
    hidden="intermediate_size",
    act="hidden_act",
    types="type_vocab_size",
)


def read(c: Hf, head: str, *, offset: int = 0, names: dict[str, str] = SIZES, eps: float | None = None) -> Model:
    """Reads a BERT; its head and pooler if the file has their tensors. `head` is part of the names of the head's tensors."""
    c.only("position_embedding_type", "absolute")
    norm = Norm(eps=c.eps("layer_norm_eps") if eps is None else eps)
    act = activation(c, names["act"])
    attention = Attention(c.count(names["heads"]), bias=True, out_bias=True)
    block = Block(attention, Mlp(c.count(names["hidden"]), act, bias=True), norm, ("out",))
    length = c.count("max_position_embeddings", least=offset + 1)
    tied, has_head = c.flag("tie_word_embeddings"), any(head in key for key in c.keys)
    if has_head and not tied:
        c.only("tie_word_embeddings", True)
    return Model(
        c.count("vocab_size"),
        c.count(names["width"]),
        encoder=Stack(c.parts(names["layers"]), {"L": block}, position=Learned(length - offset, offset), final_norm=False),
        embed=Embed(norm=norm, types=c.count(names["types"], least=0) if "types" in names else 0),
        head=Head(bias=True, transform=act, norm=norm) if has_head else None,
        pooler=c.has("pooler.dense.weight"),
    )


def classified(c: Hf, m: Model, act: Any, dense: str, out: str = "classifier") -> Model:
    """Returns the model with a classifier's head if the file has one: layers `dense`, `act`, `out` for texts, a layer
    `classifier` for tokens."""
    if m.head is not None or c.architecture.endswith("ForMultipleChoice"):
        return m
    if {f"{dense}.weight", f"{out}.weight"} <= c.keys and not c.architecture.endswith("ForTokenClassification"):
        head = Head(tied=False, bias=True, transform=act, norm=None, outputs=c.labels())
        return replace(m, head=head, pooler=m.pooler and "pooler" not in dense)
    if "classifier.weight" in c.keys:
        return replace(m, head=Head(tied=False, bias=True, norm=None, outputs=c.labels()))
    return m


def read_bert(c: Hf) -> Model:
    return classified(c, read(c, "cls.predictions"), "tanh", "bert.pooler.dense")


def write(m: Model) -> dict[str, Any]:
    block, stack = block_of(m), m.encoder
    assert stack and isinstance(stack.position, Learned)
    return sizes(m) | dict(
        hidden_act=their_activation(mlp_of(m).activation, "gelu_new"),
        layer_norm_eps=block.norm.eps,
        max_position_embeddings=stack.position.max_length + stack.position.offset,
        type_vocab_size=m.embed.types,
        tie_word_embeddings=True,
    )


def read_roberta(c: Hf) -> Model:
    m = read(c, "lm_head.", offset=c.count("pad_token_id", least=0) + 1)  # positions start after the padding's id
    if m.head is None:
        return classified(c, m, "tanh", "classifier.dense", "classifier.out_proj")
    return replace(m, head=replace(m.head, transform="gelu"))  # whatever the trunk has


def write_roberta(m: Model) -> dict[str, Any]:
    stack = m.encoder
    assert stack and isinstance(stack.position, Learned)
    return write(m) | dict(pad_token_id=stack.position.offset - 1)


DISTILBERT = dict(width="dim", layers="n_layers", heads="n_heads", hidden="hidden_dim", act="activation")


def read_distilbert(c: Hf) -> Model:
    c("sinusoidal_pos_embds")  # how the table was initialised; it is in the file either way
    return classified(c, read(c, "vocab_", names=DISTILBERT, eps=1e-12), "relu", "pre_classifier")


def write_distilbert(m: Model) -> dict[str, Any]:
    settings = write(m)
    renamed = {theirs: settings[SIZES[ours]] for ours, theirs in DISTILBERT.items()}
    rest = {k: settings[k] for k in ("vocab_size", "max_position_embeddings", "tie_word_embeddings")}
    return rest | renamed


def read_electra(c: Hf) -> Model:
    """Reads a generator, which predicts tokens, or a discriminator, which gives one logit per token."""
    m = read(c, "generator_")
    width = c.count("embedding_size")
    m = replace(m, embed=replace(m.embed, width=width if width != m.width else None))
    if m.head:
        return replace(m, head=replace(m.head, transform="gelu"))
    if c.has("discriminator_predictions.dense.weight"):
        act: Any = mlp_of(m).activation
        return replace(m, head=Head(tied=False, bias=True, transform=act, norm=None, outputs=1))
    # A classifier with one output would be written as a discriminator, so its head is not read.
    return classified(c, m, "gelu", "classifier.dense", "classifier.out_proj") if c.labels() > 1 else m


def write_electra(m: Model) -> dict[str, Any]:
    return write(m) | dict(embedding_size=m.embed.width or m.width)


def bert_layers(prefix: str) -> dict[str, Any]:
    return layers(
        "encoder",
        f"{prefix}encoder.layer.{{}}.",
        **{f"attention__{x}": f"attention.self.{x}" for x in ("query", "key", "value")},
        attention__out="attention.output.dense",
        attention_out_norm="attention.output.LayerNorm",
        ffn__up="intermediate.dense",
        ffn__down="output.dense",
        ffn_out_norm="output.LayerNorm",
    )


def names(prefix: str, **head: str) -> Names:
    """Returns the names: `prefix` is that of their trunk, `head` maps modules of our head to theirs."""
    return (
        {
            "embed/tokens": f"{prefix}embeddings.word_embeddings",
            "embed/encoder_positions": f"{prefix}embeddings.position_embeddings",
            "embed/types": f"{prefix}embeddings.token_type_embeddings",
            "embed/encoder_norm": f"{prefix}embeddings.LayerNorm",
            "embed/project": f"{prefix}embeddings_project",
            "pooler": f"{prefix}pooler.dense",
        }
        | bert_layers(prefix)
        | {ours.replace("__", "/"): theirs for ours, theirs in head.items()}
    )


PREDICTIONS = dict(
    head="cls.predictions",
    head__transform="cls.predictions.transform.dense",
    head__transform_norm="cls.predictions.transform.LayerNorm",
)
LM_HEAD = dict(head="lm_head", head__transform="lm_head.dense", head__transform_norm="lm_head.layer_norm")


def names_distilbert(m: Model) -> Names:
    return {
        "embed/tokens": "distilbert.embeddings.word_embeddings",
        "embed/encoder_positions": "distilbert.embeddings.position_embeddings",
        "embed/encoder_norm": "distilbert.embeddings.LayerNorm",
        "head": "vocab_projector",
        "head/transform": "vocab_transform",
        "head/transform_norm": "vocab_layer_norm",
    } | layers(
        "encoder",
        "distilbert.transformer.layer.{}.",
        **projections("attention.{}_lin", out="out"),
        attention_out_norm="sa_layer_norm",
        ffn__up="ffn.lin1",
        ffn__down="ffn.lin2",
        ffn_out_norm="output_layer_norm",
    )


def names_electra(m: Model) -> Names:
    norms = dict(head__transform="generator_predictions.dense", head__transform_norm="generator_predictions.LayerNorm")
    return names("electra.", head="generator_lm_head", **norms)


def classifier(dense: str, out: str = "classifier") -> Any:
    """Returns a function to the names of a classifier's head: `dense` and `out` for texts, `classifier` for tokens."""
    return lambda m: {"head/transform": dense, "head/out": out} if m.head.transform else {"head/out": "classifier"}


def classifier_electra(m: Model) -> Names:
    if m.head and m.head.outputs == 1:
        prefix = "discriminator_predictions."
        return {"head/transform": f"{prefix}dense", "head/out": f"{prefix}dense_prediction"}
    return classifier("classifier.dense", "classifier.out_proj")(m)


def read_modernbert(c: Hf) -> Model:
    width, heads, count = c.count("hidden_size"), c.count("num_attention_heads"), c.parts("num_hidden_layers")
    c.only("attention_bias", False), c.only("mlp_bias", False), c.only("tie_word_embeddings", True)
    for name in ("deterministic_flash_attn", "sparse_prediction", "sparse_pred_ignore_index", "max_position_embeddings"):
        c(name)
    for name in ("reference_compile", "repad_logits_with_grad", "layer_norm_eps", "position_embedding_type"):
        c(name, None)
    every = c.count("global_attn_every_n_layers", 3)
    local = read_layer_types(c, count, lambda i: i % every != 0)
    ropes = c("rope_parameters") or {}
    if not isinstance(ropes, dict) or not ropes.keys() <= {"full_attention", "sliding_attention"}:
        raise UserError(f"config.json: rope_parameters={ropes!r} must have the keys full_attention and sliding_attention")
    if not all(rope is None or isinstance(rope, dict) for rope in ropes.values()):
        raise UserError(f"config.json: rope_parameters={ropes!r} must give each kind of attention a table of its own")

    def rope(kind: str, old: str, default: float) -> Rope:
        settings = Hf({k: v for k, v in (ropes.get(kind) or {}).items() if v is not None}, ())
        settings.only("rope_type", "default")
        theta = settings.number("rope_theta", c.number(old, default))
        settings.check_all_used()
        return Rope(theta)

    norm = Norm(eps=c.eps("norm_eps"), bias=c.flag("norm_bias"))
    full = Attention(heads, rope=rope("full_attention", "global_rope_theta", 160_000.0))
    local_rope = rope("sliding_attention", "local_rope_theta", 10_000.0)
    window = replace(full, rope=local_rope, window=c.count("local_attention"))
    ffn = Mlp(c.count("intermediate_size"), activation(c, "hidden_activation"), gated=True)
    blocks = {"G": Block(full, ffn, norm), "W": Block(window, ffn, norm)}
    pattern = "".join("W" if windowed else "G" for windowed in local)
    blocks["F"] = replace(blocks[pattern[0]], bare=("attention",))
    act, biased = activation(c, "classifier_activation"), c.flag("classifier_bias")
    head = Head(bias=c.flag("decoder_bias"), transform=act, norm=norm, transform_bias=biased)
    if not c.has("head.dense.weight"):
        head = None
    elif "classifier.weight" in c.keys:
        if not c.architecture.endswith("ForTokenClassification"):
            c.only("classifier_pooling", "cls")  # our head cannot average over tokens
        head = replace(head, tied=False, bias=True, outputs=c.labels())
    elif c.is_trunk:
        head = None
    stack = Stack(count, blocks, "F" + pattern[1:])
    return Model(c.count("vocab_size"), width, encoder=stack, embed=Embed(norm=norm), head=head)


def write_modernbert(m: Model) -> dict[str, Any]:
    stack, block = m.encoder, block_of(m)
    assert stack
    by_layer = [attention_of(stack.blocks[letter]) for letter in stack.letters()]
    window = next((a.window for a in by_layer if a.window), 128)
    ropes = [(bool(a.window), a.rope or stack.position) for a in by_layer]
    theta = {windowed: rope.theta for windowed, rope in ropes if isinstance(rope, Rope)}
    settings = sizes(m)
    return settings | dict(
        hidden_activation=their_activation(mlp_of(m).activation),
        norm_eps=block.norm.eps,
        norm_bias=block.norm.bias,
        local_attention=window,
        layer_types=["sliding_attention" if a.window else "full_attention" for a in by_layer],
        rope_parameters={
            "full_attention": dict(rope_type="default", rope_theta=theta.get(False, 160_000.0)),
            "sliding_attention": dict(rope_type="default", rope_theta=theta.get(True, 10_000.0)),
        },
        classifier_activation=their_activation(m.head.transform or "gelu") if m.head else "gelu",
        decoder_bias=m.head is None or m.head.bias,
        classifier_bias=bool(m.head and m.head.transform_bias),
        tie_word_embeddings=True,
    )


def names_modernbert(m: Model) -> Names:
    return {
        "embed/tokens": "model.embeddings.tok_embeddings",
        "embed/encoder_norm": "model.embeddings.norm",
        "encoder/final_norm": "model.final_norm",
        "head": "decoder",
        "head/transform": "head.dense",
        "head/transform_norm": "head.norm",
    } | layers(
        "encoder",
        "model.layers.{}.",
        **fused("attn.Wqkv", "attention__query", "attention__key", "attention__value"),
        **fused("mlp.Wi", "ffn__up", "ffn__gate"),
        attention__out="attn.Wo",
        attention_in_norm="attn_norm",
        ffn_in_norm="mlp_norm",
        ffn__down="mlp.Wo",
    )


def electra_architecture(m: Model) -> str:
    return "ElectraForPreTraining" if m.head and m.head.outputs == 1 else architecture("Electra", "ForMaskedLM")(m)


def tied(prefix: str, *names: str, bias: str | None = None) -> dict[str, str]:
    """Returns the copies in older files: the token embeddings under `names`, and the logits' `bias`."""
    table = f"{prefix}embeddings.word_embeddings.weight"
    return {name: table for name in names} | ({bias.replace("bias", "decoder.bias"): bias} if bias else {})


# Defaults of their config classes (transformers 5.24, `configuration_<family>.py`); tests/parity/test_config.py checks them.
BERT = dict(
    vocab_size=30_522,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    hidden_act="gelu",
    max_position_embeddings=512,
    type_vocab_size=2,
    layer_norm_eps=1e-12,
    tie_word_embeddings=True,
)
XLM_ROBERTA = BERT | dict(pad_token_id=1)
ROBERTA = XLM_ROBERTA | dict(vocab_size=50_265)
ELECTRA = BERT | dict(embedding_size=128, hidden_size=256, num_attention_heads=4, intermediate_size=1024)
DISTIL = dict(
    vocab_size=30_522,
    max_position_embeddings=512,
    sinusoidal_pos_embds=False,
    n_layers=6,
    n_heads=12,
    dim=768,
    hidden_dim=3072,
    activation="gelu",
    tie_word_embeddings=True,
)
MODERNBERT = dict(
    vocab_size=50_368,
    hidden_size=768,
    intermediate_size=1152,
    num_hidden_layers=22,
    num_attention_heads=12,
    hidden_activation="gelu",
    max_position_embeddings=8192,
    norm_eps=1e-5,
    norm_bias=False,
    attention_bias=False,
    layer_types=None,
    rope_parameters=None,
    local_attention=128,
    mlp_bias=False,
    decoder_bias=True,
    classifier_bias=False,
    classifier_activation="gelu",
    classifier_pooling="cls",
    deterministic_flash_attn=False,
    sparse_prediction=False,
    sparse_pred_ignore_index=-100,
    tie_word_embeddings=True,
)


def roberta(name: str, defaults: dict[str, Any]) -> Family:
    """RoBERTa, or a model type with the same layers and names of tensors."""
    return Family(
        read_roberta,
        write_roberta,
        lambda m: names("roberta.", **LM_HEAD),
        architecture(name, "ForMaskedLM"),
        "roberta.",
        tied("roberta.", "lm_head.decoder.weight", bias="lm_head.bias"),
        classifier=classifier("classifier.dense", "classifier.out_proj"),
        defaults=defaults,
    )


FAMILIES = {
    "bert": Family(
        read_bert,
        write,
        lambda m: names("bert.", **PREDICTIONS),
        architecture("Bert", "ForMaskedLM"),
        "bert.",
        tied("bert.", "cls.predictions.decoder.weight", bias="cls.predictions.bias"),
        classifier=classifier("bert.pooler.dense"),
        defaults=BERT,
    ),
    "roberta": roberta("Roberta", ROBERTA),
    "xlm-roberta": roberta("XLMRoberta", XLM_ROBERTA),
    "camembert": roberta("Camembert", XLM_ROBERTA),
    "distilbert": Family(
        read_distilbert,
        write_distilbert,
        names_distilbert,
        architecture("DistilBert", "ForMaskedLM"),
        "distilbert.",
        tied("distilbert.", "vocab_projector.weight"),
        classifier=classifier("pre_classifier"),
        defaults=DISTIL,
        aliases=dict(hidden_size="dim", num_attention_heads="n_heads", num_hidden_layers="n_layers"),
    ),
    "electra": Family(
        read_electra,
        write_electra,
        names_electra,
        electra_architecture,
        "electra.",
        tied("electra.", "generator_lm_head.weight"),
        classifier=classifier_electra,
        defaults=ELECTRA,
    ),
    "modernbert": Family(
        read_modernbert,
        write_modernbert,
        names_modernbert,
        architecture("ModernBert", "ForMaskedLM"),
        "model.",
        {"decoder.weight": "model.embeddings.tok_embeddings.weight"},
        classifier=lambda m: {"head/out": "classifier"},
        defaults=MODERNBERT,
    ),
}
