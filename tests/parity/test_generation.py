"""What the engine writes equals what transformers writes with the same weights, for prompts of unequal length at once; and the
filters of its sampling exclude what theirs do."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")

from transformers.generation import logits_process as theirs  # noqa: E402

from lm import conversion  # noqa: E402
from lm.config import Sampling  # noqa: E402
from lm.generation import beam, sampling  # noqa: E402
from lm.generation.engine import Engine, Request  # noqa: E402
from lm.models.transformer import Transformer  # noqa: E402
from lm.types import TokenStream  # noqa: E402
from tests.parity.tiny import BART, GPT, GQA, LOCAL, T5, V, causal  # noqa: E402

NEW, LONG = 64, 96
CASES = {
    "gpt2": causal("GPT2LMHeadModel", "GPT2Config", **GPT | dict(n_positions=LONG)),
    "llama": causal("LlamaForCausalLM", "LlamaConfig", **GQA),
    "gemma2": causal("Gemma2ForCausalLM", "Gemma2Config", **GQA, head_dim=16, sliding_window=5, layer_types=LOCAL),
    "mixtral": causal("MixtralForCausalLM", "MixtralConfig", **GQA, num_local_experts=4),
    "bloom": causal("BloomForCausalLM", "BloomConfig", vocab_size=V, hidden_size=64, n_layer=2, n_head=4, pad_token_id=0),
    "t5": causal(
        "T5ForConditionalGeneration", "T5Config", **T5 | dict(relative_attention_max_distance=40), decoder_start_token_id=0
    ),
    "bart": causal(
        "BartForConditionalGeneration",
        "BartConfig",
        **BART | dict(max_position_embeddings=LONG, decoder_start_token_id=2, forced_eos_token_id=None),
    ),
}


@pytest.fixture(scope="module", params=CASES)
def models(request, tmp_path_factory):
    torch.manual_seed(0)
    model = CASES[request.param]().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, conversion.read(folder)


@pytest.mark.parametrize("repetition", [1.0, 1.5])
def test_greedy_texts_are_equal(models, repetition):
    """Their model reads the prompts padded on the left, ours each in a slot of its own, of which there are fewer."""
    model, imported = models
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, V, n).astype(np.int32) for n in (5, 17, 1, 9)]
    both = imported.model.architecture == "encoder_decoder"
    start = np.array([model.config.decoder_start_token_id], np.int32) if both else None
    longest = max(map(len, prompts))
    padded = [[0] * (longest - len(p)) + p.tolist() for p in prompts]
    if both:
        padded = [p.tolist() + [0] * (longest - len(p)) for p in prompts]
    seen = (np.array(padded) > 0).astype(int)
    out = model.generate(
        input_ids=torch.tensor(padded), attention_mask=torch.tensor(seen), max_new_tokens=NEW, min_new_tokens=NEW,
        do_sample=False, repetition_penalty=repetition, pad_token_id=0,
    )  # fmt: skip
    wanted = out[:, -NEW:].tolist()
    never = np.arange(V) == model.generation_config.eos_token_id  # as min_new_tokens does to the end of a text
    engine = Engine(
        Transformer(imported.model),
        imported.params,
        slots=3,
        length=LONG - 10,
        source=32 if both else 0,
        steps=7,
        forbidden=never,
    )
    greedy = Sampling(temperature=0.0, repetition=repetition)
    requests = [Request(start, NEW, greedy, p) if both else Request(p, NEW, greedy) for p in prompts]
    got = {id(r): [] for r in requests}
    for request in requests:
        engine.submit(request)
    for written in engine.run():
        got[id(written.request)].append(written.token)
    assert [got[id(r)] for r in requests] == wanted
    assert repetition == 1 or len({tuple(row) for row in wanted}) == len(prompts)


@pytest.mark.parametrize(("early", "penalty"), [("never", 1.0), ("never", 2.0), ("never", -0.5), (True, 1.0)])
def test_beams_are_equal(models, early, penalty):
    model, imported = models
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, V, n).astype(np.int32) for n in (5, 11)]
    both = imported.model.architecture == "encoder_decoder"
    eos = model.generation_config.eos_token_id
    for prompt in prompts:
        out = model.generate(
            input_ids=torch.tensor(prompt[None]).long(), max_new_tokens=20, num_beams=4, num_return_sequences=4,
            do_sample=False, early_stopping=early, length_penalty=penalty, pad_token_id=0,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        start = np.array([model.config.decoder_start_token_id], np.int32) if both else prompt
        place = np.arange(len(prompt), dtype=np.int32)[None]
        encoder = TokenStream(prompt[None], place, np.ones_like(place)) if both else None
        how = dict(beams=4, new_tokens=20, penalty=penalty, early=early is True, eos=[eos], encoder=encoder)
        found = beam.search(Transformer(imported.model), imported.params, start, **how)
        rows = out.sequences[:, len(start) :].tolist()
        wanted = [row[: row.index(eos) + 1] if eos in row else row for row in rows]
        assert [f.tokens for f in found] == wanted
        np.testing.assert_allclose([f.score for f in found], out.sequences_scores.numpy(), rtol=1e-4)


@pytest.mark.parametrize(
    ("given", "warpers"),
    [
        (dict(temperature=0.7), [theirs.TemperatureLogitsWarper(0.7)]),
        (dict(top_k=5), [theirs.TopKLogitsWarper(5)]),
        (dict(top_p=0.8), [theirs.TopPLogitsWarper(0.8)]),
        (dict(min_p=0.1), [theirs.MinPLogitsWarper(0.1)]),
        (dict(typical_p=0.7), [theirs.TypicalLogitsWarper(0.7)]),
        (
            dict(temperature=1.5, top_k=20, top_p=0.9, min_p=0.02, typical_p=0.8),
            [
                theirs.TemperatureLogitsWarper(1.5),
                theirs.TopKLogitsWarper(20),
                theirs.TopPLogitsWarper(0.9),
                theirs.MinPLogitsWarper(0.02),
                theirs.TypicalLogitsWarper(0.8),
            ],
        ),
    ],
)
def test_filters_exclude_what_theirs_exclude(given, warpers):
    logits = 2 * np.random.default_rng(0).normal(size=(6, V)).astype(np.float32)
    wanted = torch.tensor(logits)
    for warper in warpers:
        wanted = warper(None, wanted)
    rows = sampling.settings([Sampling(**given)] * 6, [0] * 6)
    got = np.asarray(jax.jit(sampling.filtered)(logits, rows))
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(wanted.numpy()))
    np.testing.assert_allclose(np.where(np.isfinite(got), got, 0), np.where(np.isfinite(got), wanted.numpy(), 0), rtol=1e-6)


def test_repetition_is_penalised_as_theirs():
    logits = np.random.default_rng(0).normal(size=(2, V)).astype(np.float32)
    ids = torch.tensor([[3, 4, 4, 9], [5, 6, 7, 8]])
    wanted = theirs.RepetitionPenaltyLogitsProcessor(1.3)(ids, torch.tensor(logits)).numpy()
    read, written = np.zeros((2, V), bool), np.zeros((2, V), np.int32)
    for row in range(2):
        read[row, ids[row, :2]] = True
        np.add.at(written[row], ids[row, 2:], 1)
    rows = sampling.settings([Sampling(repetition=1.3)] * 2, [0] * 2)
    np.testing.assert_allclose(sampling.penalised(logits, rows, read, written), wanted, rtol=1e-6)
