"""When a variational autoencoder of texts uses its vectors: annealing and word dropout (arXiv 1511.06349, section 3)."""

from typing import Any

from experiments import small
from experiments.languages import passages
from experiments.study import Cell, Metric, Relation, Results, Study
from lm import config
from lm.config import Block, Bottleneck, Embed, Lstm, Model, Norm, Stack

WIDTH, HIDDEN, LATENT, LENGTH, DOCUMENTS = 64, 128, 16, 32, 8
DIVERGENCE, BITS = "heldout/divergence", "bits"


def model(*, encoder: bool = True, dropout: float = 0.0, latent: Any = "gaussian") -> Model:
    """One LSTM layer each; the vector is put before the decoder's tokens."""
    stack = Stack(1, {"L": Block(ffn=None, mixer=Lstm(HIDDEN), norm=Norm("rms"))})
    size, embed = passages.texts().vocab_size, Embed(token_dropout=dropout, token_dropout_in="decoder")
    if not encoder:
        return Model(size, WIDTH, decoder=stack)
    bottleneck = Bottleneck(pool="mean", width=LATENT, latent=latent, documents=DOCUMENTS)
    return Model(size, WIDTH, encoder=stack, decoder=stack, embed=embed, bottleneck=bottleneck, join="prefix")


def study(seeds: int = 3, steps: int = 800) -> Study:
    lengths = dict(encoder_length=LENGTH, decoder_length=LENGTH)

    def cell(label: str, made: Model, objective: config.Objective) -> Cell:
        data = passages.texts().data(**lengths if made.encoder else dict(decoder_length=LENGTH))
        return Cell(label, small.run(made, objective, data=data, steps=steps, batch_size=16))

    plain, annealed = config.Variational(anneal=0.0), config.Variational(anneal=0.5)
    cells = {
        "none": cell("neither", model(), plain),
        "annealed": cell("annealing", model(), annealed),
        "both": cell("annealing and word dropout", model(dropout=0.4), annealed),
        "causal": cell("language model", model(encoder=False), config.Causal()),
    }
    where = "1511.06349, section 3.1"
    relations = (
        Relation("annealing and word dropout > neither", DIVERGENCE, "both", "none", source=where),
        Relation("annealing > neither", DIVERGENCE, "annealed", "none", source=where, primary=False),
        Relation(
            "language model > bound with annealing and word dropout", BITS, "causal", "both", source="1511.06349, table 2"
        ),
    )
    metrics = (
        Metric(DIVERGENCE, "divergence, held out", unit="nats a text"),
        Metric("heldout/divergence_share", "share of the divergence in the bound", higher=None),
        Metric("heldout/posterior_collapse", "collapsed", higher=None),
        Metric(BITS, "bits per byte, of variational autoencoders a bound", higher=False, unit="bits"),
    )
    title = "When the vectors of a variational autoencoder are used"
    return Study("bottleneck", title, cells, seeds, metrics, relations, derive=bits)


def bits(results: Results) -> Results:
    """Adds `BITS`: bits per byte, or the bound on them."""
    for result in (result for of_seed in results.values() for result in of_seed.values()):
        metrics = result["metrics"]
        for name in ("heldout/bits_per_byte", "heldout/bits_per_byte_bound"):
            if name in metrics:
                metrics[BITS] = metrics[name]
    return results
