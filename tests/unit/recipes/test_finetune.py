"""Which training records a fine-tuning trains on, and which it sets apart to choose settings by."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from lm import config
from lm.data.records import Labelled
from lm.errors import UserError
from lm.objectives import Lengths
from lm.recipes import finetune
from lm.recipes.finetune import _drawn

TEXTS = [f"question {n // 3}" + "!" * (n % 3) for n in range(60)]  # 20 questions, each written in three ways


def drawn(seed=0, **recipe):
    records = [Labelled(text, "yes") for text in TEXTS]
    data = SimpleNamespace(train={"mine": SimpleNamespace(num_documents=60)}, records=lambda name, split: records)
    run = SimpleNamespace(recipe=config.Finetune(**recipe), train=config.Train(seed=seed))
    trained, tested = _drawn(run, data)
    return set(trained["mine"].tolist()), set(tested.get("mine", [])), trained


def test_no_question_is_trained_on_and_tested():
    trained, tested, _ = drawn(develop=5)
    assert len(tested) == 5 and not {n // 3 for n in trained} & {n // 3 for n in tested}
    assert trained == {n for n in range(60) if n // 3 not in {m // 3 for m in tested}}  # and no other record is lost
    few, same, sorted_ = drawn(develop=5, labels=10)
    assert same == tested and len(few) == 10 and few < trained
    assert (sorted_["mine"][1:] > sorted_["mine"][:-1]).all()


def test_labels_and_records_set_apart_are_drawn_by_the_seed_and_disjoint():
    sizes = {"a": 50, "b": 30}
    records = lambda name, split: [Labelled(f"{name} {i}", "yes") for i in range(sizes[name])]
    data = SimpleNamespace(train={name: SimpleNamespace(num_documents=n) for name, n in sizes.items()}, records=records)

    def drawn(seed, **settings):
        return _drawn(config.Run(recipe=config.Finetune(**settings), train=config.Train(seed=seed)), data)

    assert drawn(0) == ({}, {})
    trained, tested = drawn(0, labels=20, develop=10)
    for name in data.train:
        assert len(trained[name]) == 20 and len(tested[name]) == 10 and not set(trained[name]) & set(tested[name])
        assert (np.diff(trained[name]) > 0).all()
    assert trained["a"].tolist() != drawn(1, labels=20, develop=10)[0]["a"].tolist()
    all_but, tested = drawn(0, develop=10)
    assert len(all_but["a"]) == 40 and len(drawn(0, labels=20)[0]["a"]) == 20 and drawn(0, labels=20)[1] == {}
    with pytest.raises(
        UserError, match="source 'b' has 30 training records, too few for recipe.labels=21 beside recipe.develop=10"
    ):
        drawn(0, labels=21, develop=10)


def test_a_seed_draws_its_own():
    assert drawn(labels=10)[0] != drawn(1, labels=10)[0] and drawn(develop=5)[1] != drawn(1, develop=5)[1]
    assert drawn(labels=10)[0] == drawn(labels=10)[0]


def test_too_few_are_refused():
    with pytest.raises(UserError, match="60 training records, too few for recipe.labels=58 beside recipe.develop=5"):
        drawn(develop=5, labels=58)


def test_answers_that_cannot_be_right_are_said():
    """An unknown word counts 0 whatever is written; classes of a head are not written."""

    def checked(how):
        rows = SimpleNamespace(how=how, unknown=lambda: {"a": 0, "b": 2}, items={"b": SimpleNamespace(record=[0, 1, 2])})
        parts = SimpleNamespace(
            run=SimpleNamespace(model=SimpleNamespace(bottleneck=None)),
            mesh=SimpleNamespace(shape={"sequence": 1}),
            lengths=Lengths(None, 8),
            rows={"holdout": rows},
            data=SimpleNamespace(tokenizer=SimpleNamespace(unk_id=3)),
        )
        finetune.FineTuning().check_data(parts)

    with pytest.warns(UserWarning, match="2 of 3 held-out answers of source 'b' have a word that the tokenizer does not know"):
        checked("text")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checked("head")
