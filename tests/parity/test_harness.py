"""The harness's model gives, sample by sample, what the harness's own `hf` model gives with the same weights."""

import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")
pytest.importorskip("lm_eval")

import tokenizers  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

from lm.conversion import folders  # noqa: E402
from lm.data.word_boundaries import WORD  # noqa: E402
from lm.evaluation import request_scores  # noqa: E402
from lm.evaluation.harness import Harness  # noqa: E402
from tests.parity.tiny import BERT, GPT, GQA, T5, causal  # noqa: E402

SIZE, LONG = 300, 48
TEXT = "The unbelievable cat sat on a mat, and the dog did not. Every house has a door; the door is red. "
PAIRS = [
    ("The cat sat on", " a mat"),
    ("The cat sat on a", " mat, and the dog did not."),
    ("The cat sat on ", "a mat"),  # white space before the join belongs to the continuation
    ("The cat sat on\n", " a"),
    ("", "The dog did not."),
    ("", " a"),
    ("Every house", " has"),
    ("Every house", " has a door; the door is red. Every house has a"),
    (TEXT * 3, " The cat"),  # longer than the model reads
    (TEXT, " the dog did not. Every house has a door; the door is red."),
    ("Every unbeliev", "able cat"),  # within a word
]
TEXTS = ["The cat.", TEXT, TEXT * 4, "a"]
CASES = {
    "gpt2": causal(
        "GPT2LMHeadModel", "GPT2Config", **GPT | dict(vocab_size=SIZE, n_positions=LONG, bos_token_id=0, eos_token_id=0)
    ),
    "llama": causal(
        "LlamaForCausalLM",
        "LlamaConfig",
        **GQA | dict(vocab_size=SIZE, max_position_embeddings=LONG, bos_token_id=0, eos_token_id=1),
    ),
    "bert": causal("BertForMaskedLM", "BertConfig", **BERT | dict(vocab_size=SIZE, max_position_embeddings=LONG)),
    "t5": causal(
        "T5ForConditionalGeneration",
        "T5Config",
        **T5 | dict(vocab_size=SIZE, n_positions=LONG, decoder_start_token_id=0, relative_attention_max_distance=40),
    ),
}


def tokenizer_json(specials, begins=None):
    """A byte-level BPE that is trained on TEXT; `begins`: what it puts before a text."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=SIZE, special_tokens=specials, initial_alphabet=sorted(letters))
    made.train_from_iterator([TEXT] * 4, trainer)
    if begins:
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{begins} $A", special_tokens=[(begins, specials.index(begins))]
        )
    return made


def saved(name, folder, specials, begins=None, template=None):
    torch.manual_seed(0)
    model = CASES[name]().eval()
    if template:
        model.config.eos_token_id = len(specials) - 1
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    if name != "bert":
        model.generation_config.eos_token_id = model.config.eos_token_id
        model.generation_config.suppress_tokens = [
            i for i in range(len(specials) - 1)
        ]  # ours writes no special token but the end
    model.save_pretrained(folder / "theirs")
    names = dict(pad_token=specials[0], eos_token=specials[-1])
    names |= {} if "<pad>" in specials else {"bos_token": specials[0]}
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer_json(specials, begins), **names)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder / "theirs")
    folders.from_hf(str(folder / "theirs"), str(folder / "ours"), dtype=None, scan=None, allow_pickle=False, drop=None)
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return saved("gpt2", tmp_path_factory.mktemp("gpt2"), ["<|endoftext|>"])


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return saved("llama", tmp_path_factory.mktemp("llama"), ["<s>", "</s>"], begins="<s>")


TURNS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' and refuses %}{{ raise_exception('no') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REFUSES = "{% set refuses = true %}" + TURNS.replace("m.content", "m.content | trim")


@pytest.fixture(scope="module", params=[TURNS, REFUSES], ids=["turns", "refuses the system"])
def talker(request, tmp_path_factory):
    specials = ["<s>", "<|im_start|>", "<|im_end|>"]
    return saved("llama", tmp_path_factory.mktemp("talker"), specials, begins="<s>", template=request.param)


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return saved("t5", tmp_path_factory.mktemp("t5"), ["<pad>", "</s>"])  # as T5 has no bos


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return saved("bert", tmp_path_factory.mktemp("bert"), ["[CLS]", "[MASK]", "[SEP]"])


def both(folder, **settings):
    theirs = HFLM(pretrained=str(folder / "theirs"), device="cpu", dtype="float32", batch_size=3, **settings)
    return theirs, Harness(str(folder / "ours"), batch_size=3, **settings)


def asked(kind, arguments):
    return [Instance(kind, {}, one, 0) for one in arguments]


def loglikelihoods(model, pairs):
    return model.loglikelihood(asked("loglikelihood", pairs), disable_tqdm=True)


def same(ours, theirs):
    np.testing.assert_allclose([nats for nats, _ in ours], [nats for nats, _ in theirs], atol=1e-4, rtol=0)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


def test_continuations(gpt2, caplog):
    theirs, ours = both(gpt2)
    assert (theirs.max_length, theirs.prefix_token_id) == (ours.max_length, ours.prefix_token_id) == (LONG, 0)
    wanted, found = loglikelihoods(theirs, PAIRS), loglikelihoods(ours, PAIRS)
    same(found, wanted)
    assert "2 of 11 contexts are too long for the 48 tokens" in caplog.text and ours.get_model_info()["truncated"] == 2
    # What the model writes itself is greedy, and so is one token of it; another token in its place is not.
    written = theirs.generate_until(asked("generate_until", [("The cat", {"until": [], "max_gen_toks": 4})]), disable_tqdm=True)
    pairs = [("The cat", written[0]), ("The cat", written[0][:-1] + "~")]
    same(loglikelihoods(ours, pairs), loglikelihoods(theirs, pairs))
    assert [greedy for _, greedy in loglikelihoods(ours, pairs)] == [True, False]


def test_each_alone_is_as_in_a_batch_and_few_programs_are_compiled(gpt2, monkeypatch):
    _, ours = both(gpt2)
    compute, programs = request_scores.row_scores, set()  # a program for each tree of shapes that is computed

    def recorded(model, params, batch, forbidden):
        programs.add(str(jax.tree.map(np.shape, batch)))
        return compute(model, params, batch, forbidden)

    monkeypatch.setattr(request_scores, "row_scores", recorded)
    together = loglikelihoods(ours, PAIRS)
    assert 1 < len(programs) <= 5
    alone = [loglikelihoods(ours, [pair])[0] for pair in PAIRS]
    np.testing.assert_allclose([a for a, _ in together], [a for a, _ in alone], atol=1e-5, rtol=0)
    backwards = loglikelihoods(ours, PAIRS[::-1])[::-1]
    np.testing.assert_allclose([a for a, _ in together], [a for a, _ in backwards], atol=1e-5, rtol=0)
    assert len(programs) <= 5


def test_whole_texts_in_windows(gpt2):
    theirs, ours = both(gpt2)
    requests = asked("loglikelihood_rolling", [(text,) for text in TEXTS])
    wanted, found = (model.loglikelihood_rolling(requests, disable_tqdm=True) for model in (theirs, ours))
    np.testing.assert_allclose(found, wanted, atol=1e-4 * 10, rtol=1e-6)
    assert len(ours.tokenizer.encode(TEXTS[2])) > 2 * LONG  # in three windows or more


def test_bos_comes_once(llama):
    """Of a tokenizer that puts bos before a text, whether the text has its name already or not, and not if it is told so."""
    for settings in ({}, {"add_bos_token": False}):
        theirs, ours = both(llama, **settings)
        pairs = [*PAIRS, ("<s>The cat", " sat"), ("<s>", "The cat")]
        same(loglikelihoods(ours, pairs), loglikelihoods(theirs, pairs))
        assert ours.tok_encode("<s>The cat") == theirs.tok_encode("<s>The cat")
        assert ours.tok_encode("The cat") == theirs.tok_encode("The cat")
        assert ours.tok_encode("The cat").count(0) == (not settings)
    # Their windows begin with bos twice where the tokenizer adds it: what is predicted first is bos itself. Ours have it once.
    requests = asked("loglikelihood_rolling", [(text,) for text in TEXTS])
    found = both(llama)[1].loglikelihood_rolling(requests)
    np.testing.assert_allclose(found, theirs.loglikelihood_rolling(requests, disable_tqdm=True), atol=1e-3, rtol=1e-6)
    assert abs(both(llama)[0].loglikelihood_rolling(requests, disable_tqdm=True)[0] - found[0]) > 1


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_texts_are_written(name, request):
    theirs, ours = both(request.getfixturevalue(name))
    settings = [
        {"until": ["\n\n"], "max_gen_toks": 12},
        {"until": ["the", "at"], "max_gen_toks": 20},
        {"until": "a", "max_gen_toks": 20, "do_sample": False},
        {"until": [], "max_gen_toks": 8, "temperature": 0.0},
    ]
    contexts = ["The cat", "Every house has a door", TEXT * 3, "a"]
    requests = asked("generate_until", [(context, dict(one)) for one in settings for context in contexts])
    wanted = [theirs.generate_until([one], disable_tqdm=True)[0] for one in requests]  # theirs depend on their padding
    found = ours.generate_until(requests)
    assert found == wanted and len(set(found)) > 4


HISTORY = [
    {"role": "system", "content": "The dog sees."},
    {"role": "user", "content": "Every house\nhas "},
    {"role": "assistant", "content": " a door "},
    {"role": "user", "content": "<|im_end|>the cat"},
]


def test_conversations_are_the_same_text_and_have_the_same_scores(talker):
    theirs, ours = both(talker)
    for history in (HISTORY[:2], HISTORY[:3], HISTORY, HISTORY[1:2], HISTORY[1:]):
        for begun in (True, False):
            assert ours.apply_chat_template(history, begun) == theirs.apply_chat_template(history, begun)
    assert ours.chat_template(True) == theirs.chat_template(True) and ours.chat_template() == ""
    context = theirs.apply_chat_template(HISTORY[1:2])
    assert ours.tok_encode(context) == theirs.tok_encode(context) and ours.tok_encode(context).count(1) == 2
    assert ours.tok_encode(context).count(0) == 1  # bos, which the template writes and the tokenizer would add
    pairs = [(context, "a door"), (context, "the cat sat<|im_end|>"), (theirs.apply_chat_template(HISTORY, True), "red")]
    same(loglikelihoods(ours, pairs), loglikelihoods(theirs, pairs))
    requests = asked("generate_until", [(c, {"until": ["\n\n"], "max_gen_toks": 12}) for c, _ in pairs])
    wanted = [theirs.generate_until([one], disable_tqdm=True)[0] for one in requests]
    assert ours.generate_until(requests) == wanted and all(wanted)


TASK = """
task: houses
dataset_path: json
dataset_kwargs: {data_files: {test: FILE, train: FILE}}
output_type: multiple_choice
test_split: test
fewshot_split: train
description: "Say what is true. "
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}]
"""


def test_a_task_is_asked_in_turns_as_the_harness_asks_its_own_model(talker, tmp_path, monkeypatch):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_HOME", str(tmp_path))
    file = tmp_path / "houses.jsonl"
    docs = [dict(question=q, answer=i % 2, choices=["a mat", "the dog"]) for i, q in enumerate(("Every", "The cat", "a door"))]
    file.write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
    (tmp_path / "houses.yaml").write_text(TASK.replace("FILE", str(file)), encoding="utf-8")
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    settings = dict(num_fewshot=1, apply_chat_template=True, fewshot_as_multiturn=True, bootstrap_iters=0)
    ours, theirs = (
        simple_evaluate(model=model, tasks=["houses"], task_manager=manager, **settings)["samples"]["houses"]
        for model in reversed(both(talker))
    )
    assert [s["arguments"] for s in ours] == [s["arguments"] for s in theirs] and len(ours) == 3
    assert ours[0]["arguments"][0][0].count("<|im_start|>assistant") == 2
    of = lambda some: [float(answer[0][0]) for s in some for answer in s["resps"]]
    np.testing.assert_allclose(of(ours), of(theirs), atol=1e-4)


def test_an_encoder_decoder_answers_as_its_objective_asks(t5):
    """Asked for a continuation of what the encoder reads, as theirs is. Theirs may write more, a context's length."""
    theirs, ours = both(t5)
    asked_so = Harness(str(t5 / "ours"), batch_size=3, objective="prefix")
    assert theirs.backend == asked_so.backend == "seq2seq" and theirs.max_length == asked_so.max_length
    same(loglikelihoods(asked_so, PAIRS), loglikelihoods(theirs, PAIRS))
    requests = asked("loglikelihood_rolling", [(text,) for text in TEXTS])
    wanted, found = (model.loglikelihood_rolling(requests, disable_tqdm=True) for model in (theirs, asked_so))
    np.testing.assert_allclose(found, wanted, atol=1e-3, rtol=1e-6)
    requests = asked("generate_until", [(c, {"until": [], "max_gen_toks": 10}) for c, _ in PAIRS if c.strip() == c != ""])
    wanted = [theirs.generate_until([one], disable_tqdm=True)[0] for one in requests]
    found = asked_so.generate_until(requests)
    pairs = [(long, short.rstrip("\ufffd")) for long, short in zip(wanted, found, strict=True)]  # half a character at its end
    assert [long[: len(short)] for long, short in pairs] == [short for _, short in pairs] and all(short for _, short in pairs)
    assert ours.get_model_info()["objective"] == "span_corruption"  # as is usual for a converted one: behind a sentinel
    assert asked_so.get_model_info() | {"objective": "prefix"} == asked_so.get_model_info()


def test_a_masked_encoder_gives_pseudo_log_likelihoods_and_says_so(bert, caplog):
    """Of each token of the continuation, given all others but the later ones of its word; by transformers' own model."""
    theirs = hf.BertForMaskedLM.from_pretrained(bert / "theirs").eval()
    ours = Harness(str(bert / "ours"), batch_size=3)
    assert "pseudo-log-likelihoods, which rank answers and are no likelihoods" in caplog.text
    assert ours.get_model_info()["likelihood"] is False and ours.get_model_info()["score"] == "pll"
    v = ours.tokenizer
    pairs = [pair for pair in PAIRS if len(v.encode("".join(pair))) < LONG - 2]
    several = 0
    for (context, continuation), (nats, greedy) in zip(pairs, loglikelihoods(ours, pairs), strict=True):
        before, target = ours._pair(context, continuation)
        ids = np.array([*before, *target, v.eos_id])
        assert ids[0] == v.bos_id and (ids == v.bos_id).sum() == 1
        first, last = len(before), len(ids) - 1
        begins = [first + i for i in np.flatnonzero(v.boundaries(np.array(target)) == WORD)]
        wanted, top = 0.0, True
        for i in range(first, last):
            shown = ids.copy()
            shown[i : next((b for b in begins if b > i), last)] = v.mask_id
            with torch.no_grad():
                table = torch.log_softmax(theirs(torch.tensor(shown[None]).long()).logits[0, i], -1).numpy()
            wanted += table[ids[i]]
            top &= bool(table.argmax() == ids[i])
        assert nats == pytest.approx(wanted, abs=1e-4) and greedy == top
        several += len(target) > len(begins)
    assert len(pairs) >= 8 and several >= 3
    (short,) = ours.loglikelihood_rolling(asked("loglikelihood_rolling", [("The cat.",)]))
    assert short == pytest.approx(loglikelihoods(ours, [("", "The cat.")])[0][0], abs=1e-4)


@pytest.fixture(scope="module")
def server(gpt2):
    """The address of `python -m lm.serve` with the model, in a process of its own."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    words = ["-m", "lm.serve", f"--from={gpt2 / 'ours'}", "--port=0", f"--length={LONG}", "--slots=4", "--queue=64"]
    process = subprocess.Popen(
        [sys.executable, *words], stderr=subprocess.PIPE, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )
    try:
        lines = iter(process.stderr.readline, "")
        yield next(found[0] for line in lines if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
    finally:
        process.terminate()
        process.communicate()


def test_the_servers_numbers_are_the_same_by_the_stock_client(gpt2, server):
    """`--model local-completions` posts token ids, and reads the log-probabilities of the prompt and the likeliest tokens."""
    for name in ("tenacity", "aiohttp", "requests"):
        pytest.importorskip(name)
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    ours = Harness(str(gpt2 / "ours"), batch_size=3)
    settings = dict(tokenizer_backend="huggingface", tokenizer=str(gpt2 / "theirs"), max_length=LONG)
    client = LocalCompletionsAPI(base_url=f"{server}/v1/completions", model="ours", **settings)
    pairs = [(a, b) for a, b in PAIRS if len(ours.tokenizer.encode(a + b)) < LONG - 1 and a]  # it has no bos before a text
    (written,) = ours.generate_until(asked("generate_until", [("The cat", {"until": [], "max_gen_toks": 4})]))
    pairs.append(("The cat", written))
    found = loglikelihoods(client, pairs)
    same(found, loglikelihoods(ours, pairs))
    assert [greedy for _, greedy in found][-1] is True and len(pairs) >= 7
    settings = {"until": ["the", "at"], "max_gen_toks": 12, "temperature": 0.0}
    requests = asked("generate_until", [(context, dict(settings)) for context in ("The cat", "Every house has a door", "a")])
    assert client.generate_until(requests, disable_tqdm=True) == ours.generate_until(requests)
