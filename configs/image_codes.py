"""Codes of pictures (VQ-VAE, arXiv 1711.00937): OpenMoji's pictures of 64 x 64 pixels become 64 codes out of 256 each, and the
codes become pictures again. A fifth of the pictures is held out.

    python -m lm.train --config=configs/image_codes.py --workdir=runs/image_codes

The report has held-out pictures and what is made of their codes. configs/decoder_draws.py draws with the codes of this run.

Needs Pillow: pip install 'lm[images]'. Cost: about two minutes on two CPU cores. Reached after 250 steps: held-out
pictures at 14.2 dB, with 173 of the 256 codes in use; with `--config.recipe.even=0` three codes were in use after 120 steps.
"""

from ml_collections import config_dict


def get_config():
    c = config_dict.ConfigDict()
    vocab, width, size, image, code = 512, 96, 8, 64, 16
    block = dict(attention=dict(num_heads=4), ffn=dict(hidden=4 * width))
    side = image // size

    def model(stem, outputs):
        position = dict(kind="learned", max_length=side**2)
        encoder = dict(num_layers=2, blocks=dict(L=block), position=position, stem=dict(class_token=False, **stem))
        return dict(vocab_size=vocab, width=width, encoder=encoder, head=dict(tied=False, bias=True, outputs=outputs))

    c.model = model(dict(size=size, image=image), code)
    decoder = model(dict(size=1, image=side, channels=code), 3 * size**2)
    c.recipe = dict(kind="image_codes", decoder=decoder, codebook=dict(codes=256, size=code), shift=4)
    c.data = dict(
        sources=dict(openmoji=dict(kind="package", path="openmoji", format="captioned")),
        tokenizer=dict(kind="bpe", vocab_size=vocab),
    )
    c.optimizer = dict(name="adamw", learning_rate=3e-3, schedule=dict(kind="cosine", warmup=50, final=0.05))
    c.train = dict(steps=600, batch_size=16)
    c.checkpoint = dict(every=None)
    c.evaluate = dict(every=200)
    c.log = dict(every=20)
    return c
