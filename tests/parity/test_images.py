"""ViT and CLIP: tiny random models of transformers, converted both ways: logits, losses and gradients equal theirs, files equal
byte for byte."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")


from lm import config, conversion  # noqa: E402
from lm.conversion import clip  # noqa: E402
from lm.data.images import patches  # noqa: E402
from lm.losses import contrastive  # noqa: E402
from lm.models.stem import normalised  # noqa: E402
from lm.models.transformer import Transformer  # noqa: E402
from lm.recipes.two_encoders import Pair  # noqa: E402
from lm.types import Example, TokenStream, vector_stream  # noqa: E402

SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, patch_size=8, image_size=32)
TEXT = dict(vocab_size=61, hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
TEXT |= dict(max_position_embeddings=12, eos_token_id=60, bos_token_id=1)
MAKE = {
    "classes": lambda: hf.ViTForImageClassification(hf.ViTConfig(**SIZES, num_labels=5, attn_implementation="eager")),
    "trunk": lambda: hf.ViTModel(hf.ViTConfig(**SIZES, qkv_bias=False, attn_implementation="eager")),
    "vision": lambda: hf.CLIPVisionModelWithProjection(hf.CLIPVisionConfig(**SIZES, projection_dim=16)),
    "text": lambda: hf.CLIPTextModelWithProjection(hf.CLIPTextConfig(**TEXT, projection_dim=16)),
}
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)


def moved(model):
    """The model with noise added to all parameters, so that none is zero or one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model.eval()


def pictures(stem: config.Patches) -> tuple[Example, "torch.Tensor"]:
    """Equal pictures for ours, as bytes, and theirs, as normalised floats [B, C, H, W]."""
    stream = vector_stream(patches(PIXELS, stem.size), stem.length)
    theirs = np.asarray(normalised(PIXELS, stem)).transpose(0, 3, 1, 2)
    return Example(stream, None, None, None), torch.tensor(theirs)


def captions() -> tuple[Example, "torch.Tensor"]:
    tokens = np.zeros((3, 12), np.int32)
    for row, length in zip(tokens, (12, 9, 5), strict=True):
        row[:length] = [1, *RNG.integers(2, 60, length - 2), 60]
    where = tokens.argmax(axis=1).astype(np.int32)[:, None]
    places = np.broadcast_to(np.arange(12, dtype=np.int32), tokens.shape)
    stream = TokenStream(tokens, places, (places <= where).astype(np.int32))
    return Example(None, stream, None, None, where), torch.tensor(tokens).long()


@pytest.mark.parametrize("name", MAKE)
def test_logits_and_files_equal(name, tmp_path):
    theirs = moved(MAKE[name]())
    theirs.save_pretrained(tmp_path / "theirs")
    imported = conversion.read(tmp_path / "theirs")
    model = Transformer(imported.model)
    if name == "text":
        example, ids = captions()
        expected = theirs(input_ids=ids).text_embeds[:, None]
    else:
        example, pixels = pictures(imported.model.encoder.stem)
        out = theirs(pixel_values=pixels)
        expected = {
            "classes": lambda: out.logits[:, None],
            "trunk": lambda: out.last_hidden_state,
            "vision": lambda: out.image_embeds[:, None],
        }[name]()
        example = example if name == "trunk" else Example(example.encoder, None, None, None, np.zeros((3, 1), np.int32))
    expected = expected.detach().numpy()
    got = jax.jit(lambda p: model.apply({"params": p}, example))(imported.params)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(got, expected, atol=2e-5, rtol=0)
    if name == "trunk":
        pooled = model.apply({"params": imported.params}, got, method="pooled")
        np.testing.assert_allclose(pooled, out.pooler_output.detach().numpy(), atol=2e-5, rtol=0)
    conversion.write(imported.model, imported.params, tmp_path / "ours", family=imported.family)
    name = "model.safetensors"
    assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    again = conversion.read(tmp_path / "ours")
    assert again.model == imported.model


def test_clip_is_theirs(tmp_path):
    """Loss and gradients of CLIPModel on three pairs, with its own normalisation of pixels; files both ways."""
    theirs = moved(hf.CLIPModel(hf.CLIPConfig(text_config=TEXT, vision_config=SIZES, projection_dim=16)))
    theirs.save_pretrained(tmp_path / "theirs")
    read = clip.read(tmp_path / "theirs")
    image, pixels = pictures(read.image.encoder.stem)
    text, ids = captions()
    out = theirs(input_ids=ids, pixel_values=pixels, return_loss=True)
    out.loss.backward()
    pair = Pair(read.image, config.TwoEncoders(read.text))
    batch = Example(image.encoder, text.decoder, None, np.ones((3, 1), np.float32), text.where)

    @jax.jit
    def ours(params):
        a, b = pair.vectors(params, batch)
        return contrastive.pairs(a, b, batch.weights[:, 0], pair.scale(params))[0].mean, (a, b)

    (loss, (a, b)), gradient = jax.value_and_grad(ours, has_aux=True)(read.params)
    assert float(loss) == pytest.approx(out.loss.item(), rel=1e-5)
    np.testing.assert_allclose(a, out.image_embeds.detach().numpy(), atol=2e-6, rtol=0)
    np.testing.assert_allclose(b, out.text_embeds.detach().numpy(), atol=2e-6, rtol=0)
    stem = read.image.encoder.stem
    kernel = np.asarray(gradient["model"]["embed"]["encoder_stem"]["patches"]["kernel"])
    wanted = theirs.vision_model.embeddings.patch_embedding.weight.grad.numpy()  # [D, C, rows, columns]
    kernel = kernel.reshape(stem.size, stem.size, 3, -1).transpose(3, 2, 0, 1)
    np.testing.assert_allclose(kernel, wanted, atol=1e-4 * np.abs(wanted).max(), rtol=0)
    wanted = theirs.text_model.embeddings.token_embedding.weight.grad.numpy()
    table = np.asarray(gradient["text"]["embed"]["tokens"]["embedding"])
    np.testing.assert_allclose(table, wanted, atol=1e-4 * np.abs(wanted).max(), rtol=0)
    assert float(gradient["log_scale"]) == pytest.approx(theirs.logit_scale.grad.item(), rel=1e-4)
    clip.write(read, tmp_path / "ours")
    name = "model.safetensors"
    assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    again = clip.read(tmp_path / "ours")
    assert again.image == read.image and again.text == read.text
    loaded = hf.CLIPModel.from_pretrained(tmp_path / "ours")
    assert torch.equal(loaded.logit_scale, theirs.logit_scale)


def test_a_picture_is_what_their_processor_makes_of_it(tmp_path):
    """The same bytes through our reader and normalisation, and through transformers' image processor."""
    image = pytest.importorskip("PIL.Image")
    from lm.conversion import pixels
    from lm.data.images import decoded

    wide = image.fromarray(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    wide.save(tmp_path / "a.png")
    stem = config.Patches(8, 32, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    processor = hf.ViTImageProcessor(**pixels.settings(stem, "ViTImageProcessor"))
    theirs = np.asarray(processor(wide, return_tensors="np")["pixel_values"][0])
    found = decoded((tmp_path / "a.png").read_bytes(), 32, "a.png")
    np.testing.assert_allclose(np.asarray(normalised(found, stem)).transpose(2, 0, 1), theirs, atol=1e-5)


def test_patches_are_theirs():
    """A convolution with a stride of its size is a product with our patches."""
    conv = torch.nn.Conv2d(3, 7, 8, stride=8, bias=False)
    theirs = conv(torch.tensor(PIXELS.transpose(0, 3, 1, 2)).float()).detach().numpy()  # [B, 7, rows, columns]
    kernel = conv.weight.detach().numpy().transpose(2, 3, 1, 0).reshape(-1, 7)
    ours = patches(PIXELS, 8).astype(np.float32) @ kernel
    np.testing.assert_allclose(ours, theirs.reshape(3, 7, -1).transpose(0, 2, 1), rtol=1e-4, atol=1e-2)


def test_folders_both_ways(tmp_path):
    """`lm.convert from_hf` makes two converted models of a CLIPModel, whose files `saved.open` reads."""
    from lm import saved
    from lm.conversion import folders

    theirs = moved(hf.CLIPModel(hf.CLIPConfig(text_config=TEXT, vision_config=SIZES, projection_dim=16)))
    theirs.save_pretrained(tmp_path / "theirs")
    said = folders.from_hf(
        str(tmp_path / "theirs"), str(tmp_path / "ours"), dtype=None, scan=None, allow_pickle=False, drop=None
    )
    assert "clip, image and text, cosines times" in said
    image = saved.open(tmp_path / "ours" / "image")
    example, pixels = pictures(image.model.encoder.stem)
    example = Example(example.encoder, None, None, None, np.zeros((3, 1), np.int32))
    found = np.asarray(Transformer(image.model).apply({"params": image.params()}, example))[:, 0]
    wanted = theirs.get_image_features(pixel_values=pixels)
    wanted = (wanted if torch.is_tensor(wanted) else wanted.pooler_output).detach().numpy()
    np.testing.assert_allclose(found, wanted, atol=2e-5, rtol=0)
    assert saved.open(tmp_path / "ours" / "text").model.vocab_size == 61


def test_a_run_becomes_a_clip_model(tmp_path):
    """Two steps of recipe two_encoders with CLIP's own layers, written by `lm.convert to_hf`, loaded by transformers."""
    image_file = pytest.importorskip("PIL.Image")
    import json

    from lm import recipes, saved
    from lm.conversion import folders
    from lm.models.presets.clip import image, text

    for i in range(12):
        image_file.fromarray(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    lines = [json.dumps({"image": f"{i}.png", "text": f"number {i} of twelve"}) for i in range(12)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), encoding="utf-8")
    source = config.Source("jsonl", str(tmp_path / "a.jsonl"), format="captioned")
    data = config.Data({"a": source}, tokenizer=config.Tokenizer("word", 64), decoder_length=12, cache=str(tmp_path / "cache"))
    run = config.Run(
        image(2, 32, 4, 8, size=32, outputs=16),
        data,
        train=config.Train(steps=2, batch_size=4),
        evaluate=config.Evaluate(every=None, batch_size=4),
        log=config.Log(samples=(), tensorboard=False),
        recipe=config.TwoEncoders(text(2, 24, 4, vocab_size=64, length=12, outputs=16)),
    )
    recipes.train(run, tmp_path / "run", quiet=True)
    said = folders.to_hf(str(tmp_path / "run"), str(tmp_path / "hf"), family=None, shard_gb=5)
    assert "clip" in said
    theirs = hf.CLIPModel.from_pretrained(tmp_path / "hf", attn_implementation="eager").eval()
    example, pixels = pictures(run.model.encoder.stem)
    example = Example(example.encoder, None, None, None, np.zeros((3, 1), np.int32))
    params = saved.open(tmp_path / "run").params()
    found = np.asarray(Transformer(run.model).apply({"params": params}, example))[:, 0]
    wanted = theirs.get_image_features(pixel_values=pixels)
    wanted = (wanted if torch.is_tensor(wanted) else wanted.pooler_output).detach().numpy()
    np.testing.assert_allclose(found, wanted, atol=2e-5, rtol=0)
    made = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text(encoding="utf-8"))
    assert made["image_mean"] == list(run.model.encoder.stem.mean)
