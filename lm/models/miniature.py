"""Shrinks a preset to a tiny model with all settings of its family, for tests and for trying a family in a minute."""

from dataclasses import replace
from typing import Any

from lm import config

WIDTH, HEADS, HEAD_DIM, HIDDEN, LAYERS = 64, 4, 16, 96, 2


def tiny(model: config.Model, *, vocab_size: int, length: int = 128, table_width: int | None = None) -> config.Model:
    """Returns `model` at width 64, with 2 layers (4 if its pattern is longer), `length` learned positions and no dropout.

    Its embedding tables are `table_width` wide; by default 32 where the preset's are narrower than its layers, else 64. A model
    without a head gets BERT's, so that every result can be trained and predicts tokens.
    """

    def attention(a: config.Attention) -> config.Attention:
        groups = a.num_heads // a.kv_heads
        kv = None if groups == 1 else 1 if a.num_kv_heads == 1 else 2
        window = a.window and min(a.window, 16)
        head_dim = HEAD_DIM if a.head_dim else None
        return replace(a, num_heads=HEADS, num_kv_heads=kv, head_dim=head_dim, window=window, dropout=0.0)

    def ffn(f: config.Ffn) -> config.Ffn:
        if isinstance(f, config.Moe):
            return replace(f, num_experts=4, top_k=min(f.top_k, 2), expert=ffn(f.expert))
        return replace(f, hidden=HIDDEN, dropout=0.0)

    def mixer(m: config.Mixer) -> config.Mixer:
        match m:
            case config.GatedLinear():
                return replace(m, hidden=WIDTH, num_heads=HEADS)
            case config.Mamba2():
                return replace(m, hidden=HIDDEN, head_dim=HEAD_DIM, state=8, groups=min(m.groups, 2), chunk=8)
            case config.Convolution():
                return m
        return replace(m, hidden=m.hidden and WIDTH)

    def stack(s: config.Stack | None) -> config.Stack | None:
        if s is None:
            return None
        blocks = {
            k: replace(
                b,
                attention=b.attention and attention(b.attention),
                ffn=b.ffn and ffn(b.ffn),
                mixer=b.mixer and mixer(b.mixer),
                dropout=0.0,
            )
            for k, b in s.blocks.items()
        }
        position: Any = s.position
        if isinstance(position, config.Learned):
            position = replace(position, max_length=length)
        stem = s.stem
        if isinstance(stem, config.Frames):
            stem = replace(stem, frames=length)
        elif isinstance(stem, config.Patches):
            stem = replace(stem, size=8, image=32)
        layers = LAYERS if len(s.pattern) <= LAYERS else 4
        pattern = (s.pattern * layers)[:layers] if len(s.pattern) > 1 else s.pattern
        parts = dict(blocks=blocks, pattern=pattern, position=position, stem=stem)
        return replace(s, num_layers=layers, dropout=0.0, scan=False, **parts)

    embed = replace(
        model.embed,
        width=table_width or (model.embed.width and WIDTH // 2),
        scale=model.embed.scale and WIDTH**0.5,
        dropout=0.0,
        token_dropout=0.0,
    )
    head = model.head
    if head is None:
        head = config.Head(bias=True, transform="gelu", tied=model.reads_tokens)
    elif head.scale is not None:
        head = replace(head, scale=WIDTH**-0.5)
    sizes = dict(vocab_size=vocab_size, width=WIDTH, embed=embed, head=head, pooler=False)
    return replace(model, encoder=stack(model.encoder), decoder=stack(model.decoder), **sizes)
