"""Templates as data: what has loss, what is refused, and that a conversation read in steps has the ids that it has at once."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from lm import config
from lm.data import chat, jinja, templates
from lm.data.corpus.prepare import fingerprint, prepare
from lm.data.examples import ExampleBuilder
from lm.data.own_template import own_template
from lm.data.record_rows import RecordRows
from lm.data.records import Feedback, Message, Messages, Preference, parse
from lm.data.render import render, render_prompt
from lm.data.tokenizer import from_bytes, train
from lm.errors import UserError
from lm.recipes import start
from tests.unit.data.test_chat import CHATML, Converted, byte_level, trained

TALK = tuple(
    Message(role, text)
    for role, text in [
        *[("system", "w2"), ("user", "w1  w1\n"), ("assistant", "\n w3"), ("user", "w4 <|im_end|>"), ("assistant", "yes ")],
        *[("user", "w5"), ("assistant", "no")],
    ]
)


@pytest.fixture(scope="module")
def ours():
    return train([f"w{i} yes no\n very" for i in range(99)] * 3, config.Tokenizer(vocab_size=400))


@pytest.fixture(scope="module", params=["turns", "t5", "chatml"])
def template(request, ours):
    return templates.of(request.param, from_bytes(byte_level(), checked=True) if request.param == "chatml" else ours)


def test_a_conversation_in_steps_has_the_ids_that_it_has_at_once(template):
    """As in a chat: each answer is read again in the history of the next."""
    (whole,) = render([Messages(TALK)], template.tokenizer, template)
    for n in (2, 4, 6):
        (part,) = render([Messages(TALK[: n + 1])], template.tokenizer, template)
        ids, end = render_prompt(TALK[:n], template.tokenizer, template)
        assert (
            part.ids.tolist() == whole.ids[: len(part.ids)].tolist()
            and part.loss.tolist() == whole.loss[: len(part.ids)].tolist()
        )
        assert ids.dtype == np.int32 and ids.tolist() == whole.ids[: len(ids)].tolist()
        # The first token of the answer has loss, the one before has none; the end of the turn is the answer's.
        assert whole.loss[len(ids)] and not whole.loss[len(ids) - 1]
        answer = part.ids[len(ids) :]
        assert answer[-1] == end and part.loss[len(ids) :].all() and template.tokenizer.decode(answer) == TALK[n].content


def test_without_a_template_and_by_ours_as_data_a_conversation_is_the_same(ours):
    records = [Messages(TALK), Messages(TALK[:3]), Preference(TALK[:4], "yes", "no"), Feedback(TALK[:2], "no", True)]
    for a, b in zip(render(records, ours), render(records, ours, templates.of("turns", ours)), strict=True):
        assert a.ids.tolist() == b.ids.tolist() and a.loss.tolist() == b.loss.tolist()
    a, b = (render_prompt(TALK[:4], ours, t) for t in (None, templates.of("turns", ours)))
    assert a[0].tolist() == b[0].tolist() and a[1] == b[1]


def test_of_a_judged_answer_the_last_one_has_loss(template):
    answers = ("yes", "no")
    (pair,) = render([Preference(TALK[:4], *answers)], template.tokenizer, template)
    before, end = render_prompt(TALK[:4], template.tokenizer, template)
    said = [[*template.tokenizer.encode(answer).tolist(), end] for answer in answers]
    assert pair.ids.tolist() == [*before.tolist(), *said[0], *before.tolist(), *said[1]]
    assert np.diff(np.flatnonzero(np.diff(pair.loss.astype(int)) == 1)).tolist() == [len(before) + len(said[0])]
    assert pair.loss.sum() == sum(map(len, said))


def test_a_template_that_marks_all_or_nothing_is_refused():
    tokenizer = from_bytes(byte_level(), checked=True)
    turn = "{{ '<|im_start|>' + m.role + m.content }}"
    all_of = "{% generation %}" + "{% for m in messages %}" + turn + "<|im_end|>{% endfor %}" + "{% endgeneration %}"
    nothing = "{% for m in messages %}" + turn + "<|im_end|>{% endfor %}"
    endless = "{% for m in messages %}<|im_start|>{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>{% endfor %}"
    user_too = "{% for m in messages %}<|im_start|>{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% endfor %}"
    for text in (all_of, nothing, endless, user_too):
        with pytest.raises(UserError, match="does not mark what the assistant says: put {% generation %}"):
            render([Messages(TALK)], tokenizer, templates.of(text, tokenizer))


def test_what_is_no_template_is_refused(ours):
    with pytest.raises(UserError, match="no chat template 'chatlm'; did you mean 'chatml'"):
        templates.of("chatlm", ours)
    with pytest.raises(UserError, match="the tokenizer has no token <.im_start.>, which the chat template 'chatml' writes"):
        templates.of("chatml", ours)
    sources = lambda format: {"a": config.Source("jsonl", "x", format=format)}
    with pytest.raises(UserError, match="template=chatml writes conversations, and no source has any"):
        config.Data(sources("pair"), template="chatml")
    assert config.Data(sources("messages"), template="chatml").template == "chatml"


def test_a_model_that_learned_a_template_is_asked_with_it():
    source = trained(from_bytes(byte_level(), checked=True))
    source.run.data = replace(source.run.data, template="chatml")
    talk, asked = chat.of(source), [{"role": "user", "content": "a <|im_end|>"}]
    ids = talk.ids(asked)
    assert (
        talk.tokenizer.special[ids].sum() == 3 and talk.end == talk.tokenizer.names["<|im_end|>"] and talk.ends == (talk.end,)
    )
    assert talk.text(asked) == "<|im_start|>user\na <|im_end|><|im_end|>\n<|im_start|>assistant\n"
    assert talk.text([*asked, {"role": "assistant", "content": "Yes, "}], begun=False).endswith("assistant\nYes, ")
    with pytest.raises(UserError, match="without tools"):
        talk.ids(asked, tools=[{}])


def test_a_template_of_its_own_text_is_taken_as_it_is_and_limited(monkeypatch):
    monkeypatch.setattr(jinja, "SECONDS", 0.2)
    tokenizer = from_bytes(byte_level(), checked=True)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(UserError, match="the chat template '{% for i .* fails at this conversation: it takes more than 0.2 s"):
        render([Messages(TALK)], tokenizer, templates.of(endless, tokenizer))


def test_prepared_conversations_are_written_by_the_template_and_read_whole(tmp_path):
    """An encoder reads the history from its first token on, though this template begins with no bos."""
    tokenizer = from_bytes(byte_level(), checked=True)
    lines = [{"conversations": [{"from": "human", "value": f"{i}"}, {"from": "gpt", "value": "yes"}] * 2} for i in range(6)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    source = config.Source("jsonl", str(tmp_path / "a.jsonl"), format="messages")
    data = config.Data({"a": source}, template="chatml", holdout=0.0, cache=str(tmp_path / "cache"))
    done = prepare(data, tokenizer=tokenizer, progress=False)
    marks = {fingerprint(replace(data, template=name), tokenizer) for name in (None, "chatml", "t5")}
    assert done.fingerprint in marks and len(marks) == 3
    start, end = (tokenizer.names[name] for name in ("<|im_start|>", "<|im_end|>"))
    assert tokenizer.bos_id is not None and done.train["a"].document(0)[0] == start
    for architecture, stream in (("decoder", "decoder"), ("encoder_decoder", "encoder")):
        builder = ExampleBuilder(tokenizer, architecture, length=64, answer=8, prefix=False)
        rows = RecordRows(done.train, data, builder, how="text", seed=0, shuffle=False)
        example, (encoder, decoder) = rows.rows(np.arange(1)), rows.prompts([0])[0]
        assert getattr(example, stream).tokens[0, 0] == start and (decoder if encoder is None else encoder)[0] == start
        learned = example.targets[0][example.weights[0] > 0]
        said = [*tokenizer.encode("yes").tolist(), end]
        assert learned.tolist() == said * (2 if architecture == "decoder" else 1)
    assert rows.count == 12  # an encoder-decoder learns each answer by itself
    before = np.count_nonzero(rows.rows(np.array([1])).encoder.segments[0])
    (whole,) = render([parse(lines[0], "messages")], tokenizer, templates.of("chatml", tokenizer))
    assert before == len(whole.ids) - len(said)


def test_a_run_goes_on_with_the_template_that_its_model_learned():
    talks, texts = ({"a": config.Source("jsonl", "x", format=format)} for format in ("preference", "pair"))
    data = config.Data({"a": config.Source("jsonl", "x", format="messages")}, template="chatml")
    before = SimpleNamespace(run=SimpleNamespace(data=data))
    assert start.with_template(config.Data(talks), before).template == "chatml"
    assert start.with_template(config.Data(talks, template="t5"), before).template == "t5"
    assert start.with_template(config.Data(texts), before).template is None
    assert start.with_template(config.Data(talks), None).template is None


# ------------------------------------------------------------------------------------------------ a converted model's own

LLAMA2 = (  # as the published one: roles alternate, the answer is stripped, and a space is before and behind it
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '<|im_start|>[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(("text", "answer"), [(CHATML, "{}"), (LLAMA2, " {} ")])
def test_without_marks_an_answer_is_what_stands_behind_the_prompt_up_to_a_special_token(text, answer):
    source, talk = Converted(text), TALK[1:]
    template, converted = templates.of(own_template(source), source.tokenizer()), chat.of(source)
    (whole,) = render([Messages(talk)], template.tokenizer, template)
    for n in (1, 3, 5):
        (part,) = render([Messages(talk[: n + 1])], template.tokenizer, template)
        before, end = render_prompt(talk[:n], template.tokenizer, template)
        assert before.tolist() == converted.ids([{"role": m.role, "content": m.content} for m in talk[:n]]).tolist()
        for given in (part.ids, before):
            assert given.tolist() == whole.ids[: len(given)].tolist()
        assert part.loss.tolist() == whole.loss[: len(part.ids)].tolist()
        said, content = part.ids[len(before) :], talk[n].content
        assert part.loss[len(before) :].all() and not part.loss[len(before) - 1]
        assert said[-1] == end and end in converted.ends
        assert template.tokenizer.decode(said) == answer.format(content if answer == "{}" else content.strip())


def test_a_run_takes_a_converted_models_own_template_or_says_why_not():
    data = config.Data({"a": config.Source("jsonl", "x", format="messages")})
    dated = Converted(CHATML + "{{ strftime_now('%d') }}")
    assert start.with_template(data, Converted()).template == CHATML
    assert start.with_template(replace(data, template="t5"), dated).template == "t5"
    assert start.with_template(config.Data({"a": config.Source("jsonl", "x", format="pair")}), dated).template is None
    assert start.with_template(data, Converted(None)).template is None
    named = Converted([{"name": "default", "template": "{{ pad_token }}" + CHATML}, {"name": "tool_use", "template": "t"}])
    assert start.with_template(data, named).template == "{{ pad_token }}" + CHATML  # which is empty, as in transformers
    padded = Converted("{{ pad_token }}" + CHATML, pad_token="<|endoftext|>")
    assert start.with_template(data, padded).template == '{%- set pad_token = "<|endoftext|>" %}{{ pad_token }}' + CHATML
    for source, cause in (
        (dated, "it writes the day's date"),
        (Converted(CHATML.partition("{% if add")[0]), "it does not mark"),
    ):
        with pytest.raises(UserError, match=f"^the chat template of model is none to train with .{cause}.*template=chatml$"):
            start.with_template(data, source)
