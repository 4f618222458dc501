"""CLIP (Radford et al., arXiv 2103.00020): the encoders of pictures and of captions, sizes from tables 19 and 20.

Pre-norm, x * sigmoid(1.702 x), biases but for the patches' and the projections' (section 2.4 and the released weights). The
encoder of pictures has a norm before its first layer too. The heads are the projections to the common space.
"""

from lm.config import Attention, Block, Embed, Head, Learned, Mlp, Model, Norm, Patches, Stack

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of its training images


def _block(width: int, heads: int) -> Block:
    return Block(Attention(heads, bias=True, out_bias=True), Mlp(4 * width, "gelu_quick", bias=True), Norm(eps=1e-5))


def image(num_layers: int, width: int, heads: int, patch: int, *, size: int = 224, outputs: int = 512) -> Model:
    """The encoder of pictures: a ViT."""
    stem = Patches(patch, size, bias=False, mean=MEAN, std=STD)
    stack = Stack(num_layers, {"L": _block(width, heads)}, position=Learned(stem.length), stem=stem)
    return Model(1, width, encoder=stack, embed=Embed(norm=Norm(eps=1e-5)), head=Head(tied=False, outputs=outputs))


def text(num_layers: int, width: int, heads: int, *, vocab_size: int = 49_408, length: int = 77, outputs: int = 512) -> Model:
    """The encoder of captions, left to right."""
    stack = Stack(num_layers, {"L": _block(width, heads)}, position=Learned(length))
    return Model(vocab_size, width, decoder=stack, head=Head(tied=False, outputs=outputs))


# Pictures, captions; with the scale of the cosines 151,277,313 parameters of ViT-B/32 and 149,620,737 of ViT-B/16.
VIT_B32 = image(12, 768, 12, 32), text(12, 512, 8)
VIT_B16 = image(12, 768, 12, 16), text(12, 512, 8)
VIT_L14 = image(24, 1024, 16, 14, outputs=768), text(12, 768, 12, outputs=768)  # 427,616,513
