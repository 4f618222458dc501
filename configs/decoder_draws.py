"""Drawing: a decoder reads a caption and writes the codes of its picture (DALL-E, arXiv 2102.12092), of which a run of
configs/image_codes.py makes pixels. OpenMoji's pictures, a fifth of them held out.

    python -m lm.train --config=configs/image_codes.py --workdir=runs/image_codes
    python -m lm.train --config=configs/decoder_draws.py --workdir=runs/draws
    python -m lm.generate --from=runs/draws --pictures=drawn --samples=4 "red apple" "angry face"

The codes are those of `recipe.codes`, here runs/image_codes. The report has held-out pictures, what is made of their codes, and
two drawings after the caption of each.

Needs Pillow: pip install 'lm[images]'. Cost: about two minutes on two CPU cores.
"""

from ml_collections import config_dict


def get_config():
    c = config_dict.ConfigDict()
    vocab, codes, width, text, places = 512, 256, 96, 40, 64
    block = dict(attention=dict(num_heads=4), ffn=dict(hidden=4 * width), dropout=0.1)
    position = dict(kind="learned", max_length=text + places)
    c.model = dict(
        vocab_size=vocab + codes,
        width=width,
        decoder=dict(num_layers=3, blocks=dict(L=block), position=position),
        head=dict(tied=False),
    )
    c.recipe = dict(kind="drawing", codes="runs/image_codes", text=text)
    c.data = dict(
        sources=dict(openmoji=dict(kind="package", path="openmoji", format="captioned")),
        tokenizer=dict(kind="bpe", vocab_size=vocab),
    )
    c.optimizer = dict(name="adamw", learning_rate=2e-3, schedule=dict(kind="cosine", warmup=50, final=0.05))
    c.train = dict(steps=250, batch_size=32)
    c.checkpoint = dict(every=None)
    c.evaluate = dict(every=125)
    c.log = dict(every=20, temperature=1.0)
    return c
