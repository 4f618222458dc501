"""An encoder-decoder against decoders, on verses from one English into another (T5, arXiv 1910.10683, Table 2)."""

from experiments import answers, small
from experiments.languages import verses
from experiments.study import Cell, Gate, Metric, Relation, Results, Study
from lm import config

LENGTH = verses.LONGEST + 2  # tokens of a clause with its ends
# Name -> label, architecture, layers of a stack, whether the question is read from both sides, share of the FLOPs.
CELLS = {
    "encdec": ("encoder-decoder", "encoder_decoder", 2, True, 1.0),
    "causal": ("causal decoder", "decoder", 4, False, 1.0),
    "prefix": ("prefix decoder", "decoder", 4, True, 1.0),
    "encdec_less": ("encoder-decoder, as many clauses as the decoders", "encoder_decoder", 2, True, 0.61),
}
NATS, EXACT, GAIN = "asked/nats", "asked/exact", "asked/gain"


def run(architecture: str, layers: int, both: bool) -> config.Run:
    """Trained on the answers alone, as a fine-tuning from scratch is."""
    language = verses.language()
    source = lambda name, use: config.Source("jsonl", language.items[name], format="pair", use=use)
    held_out = {name: source(name, "holdout") for name in ("asked", "mismatched")}
    return config.Run(
        small.model(architecture, layers=layers, vocab_size=language.vocab_size),
        language.data(sources={"taught": source("taught", "train")} | held_out),
        config.Causal(),
        config.Optimizer(learning_rate=2e-3, schedule=small.DECAYING),
        config.Train(batch_size=32),
        config.Checkpoint(every=None, keep=1, keep_best=False),
        config.Evaluate(every=None, rows=64, batch_size=64),
        log=config.Log(samples=(), tensorboard=False),
        recipe=config.Finetune(how="text", length=LENGTH, answer=LENGTH - 1, prefix=both and architecture == "decoder"),
    )


def study(seeds: int = 3, budget: float = 1e12) -> Study:
    cells = {
        name: Cell(label, run(architecture, layers, both), {"layers": str(layers)}, share=share, measure=answers.measured)
        for name, (label, architecture, layers, both, share) in CELLS.items()
    }
    source = "T5, arXiv 1910.10683, Table 2; RedLLM, arXiv 2510.26622"
    relations = (
        Relation("encoder-decoder > causal decoder", NATS, "encdec", "causal", source=source),
        Relation("prefix decoder > causal decoder", NATS, "prefix", "causal", source="T5, arXiv 1910.10683, Table 2"),
        Relation("encoder-decoder > prefix decoder", NATS, "encdec", "prefix", source=source, primary=False),
        Relation("encoder-decoder > causal decoder, as many clauses", NATS, "encdec_less", "causal", primary=False),
        Relation("encoder-decoder > causal decoder, exact", EXACT, "encdec", "causal", source=source, primary=False),
    )
    metrics = (
        Metric(NATS, "answers, nats a token", higher=False, unit="nats a token"),
        Metric(EXACT, "share of answers whose every token is the most likely", lines={"copying the question": verses.COPIED}),
        Metric(GAIN, "answers, nats a token that the right question saves over another", unit="nats a token"),
    )
    gates = (Gate("the answer is read off the question", GAIN, at_least=0.5),)
    title = "Encoder-decoder against decoder, on verses"
    return Study("translation", title, cells, seeds, metrics, relations, "flops", budget, derive=gains, gates=gates)


def gains(results: Results) -> Results:
    """Adds what the right question saves: nats a token of an answer after the question of another record, less `NATS`."""
    for result in (result for seeds in results.values() for result in seeds.values()):
        metrics = result["metrics"]
        if NATS in metrics:  # a diverged run has none
            metrics[GAIN] = metrics["mismatched/nats"] - metrics[NATS]
    return results
