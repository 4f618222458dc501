"""BERT, RoBERTa, DistilBERT, ELECTRA (both its halves), ModernBERT. Small BERTs and MiniLM are `bert`."""

from dataclasses import replace
from typing import Any

from lm.config import Attention, Block, Embed, Head, Learned, Mlp, Model, Norm, Rope, Stack
from lm.convert.families.llama import block_of, mlp_of, sizes
from lm.convert.tables import Family, Hf, Names, activation, fused, layers, projections, their_activation

SIZES = dict(
    width="hidden_size",
    layers="num_hidden_layers",
    heads="num_attention_heads",
    hidden="intermediate_size",
    act="hidden_act",
    types="type_vocab_size",
)


def read(c: Hf, head: str, *, offset: int = 0, names: dict[str, str] = SIZES, eps: float | None = None) -> Model:
    """A model has a head if the names of its tensors say so (`head` is in one of them), and a pooler likewise."""
    c.only("position_embedding_type", "absolute")
    norm = Norm(eps=c("layer_norm_eps", 1e-12) if eps is None else eps)
    act = activation(c, names["act"], "gelu")
    attention = Attention(c(names["heads"]), bias=True, out_bias=True)
    block = Block(attention, Mlp(c(names["hidden"]), act, bias=True), norm, ("out",))
    position = Learned(c("max_position_embeddings") - offset, offset)
    tied, has_head = c("tie_word_embeddings", True), any(head in key for key in c.keys)
    if has_head and not tied:
        c.only("tie_word_embeddings", True)
    return Model(
        c("vocab_size"),
        c(names["width"]),
        encoder=Stack(c(names["layers"]), {"L": block}, position=position, final_norm=False),
        embed=Embed(norm=norm, types=c(names["types"], 2) if "types" in names else 0),
        head=Head(bias=True, transform=act, norm=norm) if has_head else None,
        pooler=c.has("pooler.dense.weight"),
    )


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
    m = read(c, "lm_head.", offset=c("pad_token_id", 1) + 1)  # positions count from behind the padding's id
    return m if m.head is None else replace(m, head=replace(m.head, transform="gelu"))  # whatever the trunk's


def write_roberta(m: Model) -> dict[str, Any]:
    stack = m.encoder
    assert stack and isinstance(stack.position, Learned)
    return write(m) | dict(pad_token_id=stack.position.offset - 1)


DISTILBERT = dict(width="dim", layers="n_layers", heads="n_heads", hidden="hidden_dim", act="activation")


def read_distilbert(c: Hf) -> Model:
    c.only("sinusoidal_pos_embds", False)
    return read(c, "vocab_", names=DISTILBERT, eps=1e-12)


def write_distilbert(m: Model) -> dict[str, Any]:
    given = write(m)
    renamed = {theirs: given[SIZES[ours]] for ours, theirs in DISTILBERT.items()}
    rest = {k: given[k] for k in ("vocab_size", "max_position_embeddings", "tie_word_embeddings")}
    return rest | renamed


def read_electra(c: Hf) -> Model:
    """The generator predicts tokens from the embedding's width, the discriminator one number for each."""
    c("summary_type", None), c("embedding_size")
    m = read(c, "generator_")
    width = c("embedding_size", m.width)
    m = replace(m, embed=replace(m.embed, width=width if width != m.width else None))
    if m.head:
        return replace(m, head=replace(m.head, transform="gelu"))
    if c.has("discriminator_predictions.dense.weight"):
        act = mlp_of(m).activation
        return replace(m, head=Head(tied=False, bias=True, transform=act, norm=None, outputs=1))
    return m


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
    """`prefix` of the trunk; `head`: our modules of the head."""
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
    if m.head and m.head.outputs:
        head = dict(head__transform="discriminator_predictions.dense", head__out="discriminator_predictions.dense_prediction")
        return names("electra.", **head)
    norms = dict(head__transform="generator_predictions.dense", head__transform_norm="generator_predictions.LayerNorm")
    return names("electra.", head="generator_lm_head", **norms)


def read_modernbert(c: Hf) -> Model:
    width, heads, count = c("hidden_size"), c("num_attention_heads"), c("num_hidden_layers")
    (
        c.only("attention_bias", False),
        c.only("mlp_bias", False),
        c.only("decoder_bias", True),
        c.only("tie_word_embeddings", True),
    )
    c("deterministic_flash_attn", None), c("sparse_prediction", None), c("sparse_pred_ignore_index", None)
    c("max_position_embeddings", None), c("reference_compile", None), c("repad_logits_with_grad", None)
    c("layer_norm_eps", None), c("position_embedding_type", None)
    every = c("global_attn_every_n_layers", 3)
    types = c("layer_types", None) or ["sliding_attention" if i % every else "full_attention" for i in range(count)]
    ropes = c("rope_parameters", None) or {}

    def rope(kind: str, old: str, default: float) -> Rope:
        given = Hf({k: v for k, v in ropes.get(kind, {}).items() if v is not None}, ())
        given.only("rope_type", "default")
        theta = given("rope_theta", c(old, default))
        given.check_all_used()
        return Rope(float(theta))

    norm = Norm(eps=c("norm_eps", 1e-5), bias=c("norm_bias", False))
    full = Attention(heads, rope=rope("full_attention", "global_rope_theta", 160_000.0))
    local = rope("sliding_attention", "local_rope_theta", 10_000.0)
    window = replace(full, rope=local, window=c("local_attention", 128))
    ffn = Mlp(c("intermediate_size"), activation(c, "hidden_activation", "gelu"), gated=True)
    blocks = {"G": Block(full, ffn, norm), "W": Block(window, ffn, norm)}
    pattern = "".join("W" if t == "sliding_attention" else "G" for t in types)
    blocks["F"] = replace(blocks[pattern[0]], bare=("attention",))
    act = c.values.get("classifier_activation", "gelu")
    return Model(
        c("vocab_size"),
        width,
        encoder=Stack(count, blocks, "F" + pattern[1:]),
        embed=Embed(norm=norm),
        head=Head(bias=True, transform=act, norm=norm, transform_bias=c.values.get("classifier_bias", False))
        if c.has("head.dense.weight")
        else None,
    )


def write_modernbert(m: Model) -> dict[str, Any]:
    stack, block = m.encoder, block_of(m)
    assert stack
    of = [stack.blocks[letter].attention for letter in stack.letters()]
    window = next((a.window for a in of if a.window), 128)
    theta = {bool(a.window): a.rope.theta for a in of if a.rope}
    given = sizes(m)
    return given | dict(
        hidden_activation=their_activation(mlp_of(m).activation),
        norm_eps=block.norm.eps,
        norm_bias=block.norm.bias,
        local_attention=window,
        layer_types=["sliding_attention" if a.window else "full_attention" for a in of],
        rope_parameters={
            "full_attention": dict(rope_type="default", rope_theta=theta.get(False, 160_000.0)),
            "sliding_attention": dict(rope_type="default", rope_theta=theta.get(True, 10_000.0)),
        },
        classifier_activation=m.head.transform if m.head else "gelu",
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
    return "ElectraModel" if not m.head else "ElectraForPreTraining" if m.head.outputs else "ElectraForMaskedLM"


def with_head(name: str) -> Any:
    return lambda m: f"{name}ForMaskedLM" if m.head else f"{name}Model"


def tied(prefix: str, *names: str, bias: str | None = None) -> dict[str, str]:
    """What older files repeat: the table of embeddings under other names, the bias of the logits."""
    table = f"{prefix}embeddings.word_embeddings.weight"
    return {name: table for name in names} | ({bias.replace("bias", "decoder.bias"): bias} if bias else {})


FAMILIES = {
    "bert": Family(
        lambda c: read(c, "cls.predictions"),
        write,
        lambda m: names("bert.", **PREDICTIONS),
        with_head("Bert"),
        "bert.",
        tied("bert.", "cls.predictions.decoder.weight", bias="cls.predictions.bias"),
    ),
    "roberta": Family(
        read_roberta,
        write_roberta,
        lambda m: names("roberta.", **LM_HEAD),
        with_head("Roberta"),
        "roberta.",
        tied("roberta.", "lm_head.decoder.weight", bias="lm_head.bias"),
    ),
    "distilbert": Family(
        read_distilbert,
        write_distilbert,
        names_distilbert,
        with_head("DistilBert"),
        "distilbert.",
        tied("distilbert.", "vocab_projector.weight"),
    ),
    "electra": Family(
        read_electra,
        write_electra,
        names_electra,
        electra_architecture,
        "electra.",
        tied("electra.", "generator_lm_head.weight"),
    ),
    "modernbert": Family(
        read_modernbert,
        write_modernbert,
        names_modernbert,
        with_head("ModernBert"),
        "model.",
        {"decoder.weight": "model.embeddings.tok_embeddings.weight"},
    ),
}
