"""Long texts: windows and quotations are verbatim and know their place; parts are asked and answers combined by a fake."""

import json
import random

import pytest

from lm.errors import UserError
from lm.talk.reading import MAP, NOTHING, REDUCE, Reader, filled
from lm.talk.windows import Document

TEXT = "".join(
    f"Chapter {i}.\n\nThe colour of room {i} is {colour}. It has {i * 7} windows, e.g. 1.5 m wide! Is it \U0001f600 large?\r\n"
    for i, colour in enumerate(["red", "green", "blue", "white", "brown", "pink"] * 3)
)


def lines_of(text, part):
    """The lines of a part, counted in another way than the product's."""
    return 1 + text[: part.start].count("\n"), 1 + text[: max(part.start, part.stop - 1)].count("\n")


def texts():
    rng = random.Random(0)
    letters = ["a", "b", " ", " ", "\n", ". ", "\n\n", "\u00e9\u0301", "\r\n", "x" * 30, "?!"]
    made = ["".join(rng.choice(letters) for _ in range(rng.randint(1, 400))) for _ in range(60)]
    return [TEXT, "a", "x" * 500, "  \n\n a \n", *made]


@pytest.mark.parametrize("size,overlap", [(40, 0), (40, 12), (200, 60), (10_000, 300)])
def test_windows_are_parts_of_the_text_and_leave_nothing_out(size, overlap):
    for text in texts():
        document = Document(text)
        windows = document.windows(size, overlap)
        covered = [False] * len(text)
        for window in windows:
            assert window.text == text[window.start : window.stop] and 0 < len(window.text) <= size
            assert window.lines == lines_of(text, window)
            covered[window.start : window.stop] = [True] * len(window.text)
        assert all(done or c.isspace() for done, c in zip(covered, text, strict=True))
        assert [w.start for w in windows] == sorted({w.start for w in windows})
        if overlap == 0:
            assert all(a.stop <= b.start for a, b in zip(windows, windows[1:], strict=False))
    windows = Document(TEXT).windows(200, 60)
    assert all(b.start < a.stop for a, b in zip(windows, windows[1:], strict=False))
    whole = {"", "\n", " "}
    assert all(TEXT[w.start - 1 : w.start] in whole for w in windows)  # none begins inside a word


def test_sentences_are_verbatim_with_their_places():
    for text in texts():
        document = Document(text)
        for window in document.windows(120, 30):
            sentences = document.sentences(window)
            for one in sentences:
                assert one.text == text[one.start : one.stop] and one.lines == lines_of(text, one)
                assert window.start <= one.start < one.stop <= window.stop
            assert sum(len("".join(s.text.split())) for s in sentences) == len("".join(window.text.split()))
    text = 'He said: "No." Then 3.5 m fell, e.g.here. Why?! "Yes!" she\nsaid'
    found = [s.text for s in Document(text).sentences(Document(text).part(0, len(text)))]
    assert found == ['He said: "No."', "Then 3.5 m fell, e.g.here.", "Why?!", '"Yes!"', "she", "said"]


def test_the_quotation_is_the_sentence_that_shares_the_rarest_words():
    document = Document(TEXT)
    (window,) = document.windows(100_000, 0)
    assert document.quote(window, "Room 7 is green", "what colour?").text == "The colour of room 7 is green."
    assert document.quote(window, "there are 35", "how many windows?").text.startswith("It has 35 windows")
    assert document.quote(window, "", "").text  # something of the part, whatever was said


class Model:
    """Finds the colour of a room in a part; combines answers by joining them."""

    def __init__(self):
        self.prompts = []

    def __call__(self, prompt):
        self.prompts.append(prompt)
        if prompt.startswith("COMBINE"):
            return "+".join(line.removeprefix("- ") for line in prompt.splitlines()[1:])
        found = "The colour of room 7 is " in prompt
        return prompt.partition("The colour of room 7 is ")[2].partition(".")[0] if found else "None."


def reader(model, **changes):
    alike = lambda question, parts: [part.count(question[-7:-1]) + 0.1 * part.count("room 1 ") for part in parts]
    settings = dict(map_prompt="{text}\nQ: {question}", reduce_prompt="COMBINE {question}\n{answers}", window=200, overlap=20)
    return Reader(Document(TEXT), model, alike, **settings | changes)


def test_the_parts_that_are_most_alike_are_asked_and_sources_are_quoted():
    model = Model()
    found = reader(model).answer("What colour has room 7?", top=2)
    assert len(model.prompts) == 2 == found.asked and all("Q: What colour has room 7?" in p for p in model.prompts)
    assert found.text == "green" and len(found.parts) == 1 and found.parts[0].similarity == 1
    (source,) = found.parts
    assert source.quote.text == "The colour of room 7 is green." == TEXT[source.quote.start : source.quote.stop]
    said = json.loads(json.dumps(found.to_json()))
    assert said["question"] == "What colour has room 7?" and said["answer"] == "green" and said["asked"] == 2
    quote = said["parts"][0]["quote"]
    assert TEXT[quote["start"] : quote["stop"]] == quote["text"] and quote["lines"] == list(lines_of(TEXT, source.quote))
    nothing = reader(Model()).answer("What colour has room 99?", top=1)
    assert (nothing.text, nothing.parts, nothing.asked) == (NOTHING, (), 1)


def test_all_parts_are_summarised_in_order_and_answers_combined_until_one_is_left():
    prompts = []

    def model(prompt):
        prompts.append(prompt)
        return f"s{len(prompts)}"

    made = reader(model, map_prompt="{text}", reduce_prompt="COMBINE\n{answers}", window=200)
    found = made.answer(None, top=None)
    first = [p for p in prompts if not p.startswith("COMBINE")]
    assert first == [part.text for part in made.parts] and found.asked == len(made.parts) == len(found.parts)
    assert found.to_json().keys() == {"answer", "asked", "parts"} and "similarity" not in found.to_json()["parts"][0]
    assert found.text == f"s{len(prompts)}" and prompts[len(first)].splitlines()[1:4] == ["- s1", "- s2", "- s3"]
    # Answers that are longer than a window are combined two by two, and it ends.
    prompts.clear()
    long = lambda prompt: prompts.append(prompt) or "x" * 300
    assert reader(long, map_prompt="{text}", reduce_prompt="COMBINE\n{answers}").answer(None, top=None).text == "x" * 300
    assert {len(p.splitlines()) for p in prompts if p.startswith("COMBINE")} == {3}


def test_prompts_of_ones_own():
    assert filled("{a} {b} {c}", a="{b}", b="2") == "{b} 2 {c}"  # a text is not searched for places
    assert "{text}" in MAP and "{answers}" in REDUCE
    for changes, cause in (
        (dict(map_prompt="{txt}"), "--map_prompt has no {text}"),
        (dict(reduce_prompt="all"), "--reduce_prompt has no {answers}"),
        (dict(overlap=100), "--overlap=100 is not below half of --window=200"),
    ):
        with pytest.raises(UserError, match=cause):
            reader(Model(), **changes)
    with pytest.raises(UserError, match="the file has no text"):
        Reader(Document(" \n"), Model(), None, map_prompt="{text}", reduce_prompt="{answers}", window=100, overlap=0)
