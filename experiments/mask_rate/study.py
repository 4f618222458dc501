"""Masking rates, and whether a larger model prefers a higher one (arXiv 2202.08005)."""

from experiments import small
from experiments.languages import villages
from experiments.study import Cell, Derived, Gate, Metric, Relation, Results, Study, derived_result
from lm import config

RATES = (0.15, 0.4, 0.6)
SIZES = {"small": (32, 2), "large": (128, 2)}  # width, layers
SPAN, GAIN = "span/nats", "gain of 40 % over 15 %"


def name_of(size: str, rate: float) -> str:
    return f"{size}_{rate:.2f}"


def study(seeds: int = 3, steps: int = 800) -> Study:
    """All cells read the same number of tokens, as in the paper, and are asked for the same gaps of three words."""
    language = villages.language()
    cells = {}
    for size, (width, layers) in SIZES.items():
        for rate in RATES:
            model = small.model("encoder", width=width, layers=layers, vocab_size=language.vocab_size)
            data = language.data(encoder_length=64)
            run = small.run(model, config.Masked(rate=rate), steps=steps, data=data)
            asked = {name: language.items[name] for name in ("span", "home", "pronoun")}
            cells[name_of(size, rate)] = Cell(f"{size}, {rate:.0%}", run, {"size": size, "rate": f"{rate:.0%}"}, items=asked)
    source = "arXiv 2202.08005"
    relations = (
        Relation("the gain of 40 % over 15 % is greater in the large model", GAIN, "large, gain", "small, gain", source=source),
        Relation("large: 40 % > 15 %", SPAN, "large_0.40", "large_0.15", source=source),
        Relation("small: 40 % > 15 %", SPAN, "small_0.40", "small_0.15", source=source, primary=False),
        Relation("large: 40 % > 60 %", SPAN, "large_0.40", "large_0.60", source=source, primary=False),
        Relation("small: 40 % > 60 %", SPAN, "small_0.40", "small_0.60", source=source, primary=False),
    )
    metrics = (
        Metric(GAIN, "nats of a gap that 40 % saves over 15 %", unit="nats"),
        Metric(SPAN, "gap of three words", higher=False, lines={"single words": 3 * villages.UNIGRAM}, unit="nats"),
        Metric("home/exact", "homes that are right", lines={"chance": 1 / len(villages.PLACES)}),
        Metric("pronoun/exact", "pronouns that are right", lines={"chance": 1 / len(villages.CLANS)}),
    )
    gate = Gate("the model fills gaps by more than the frequencies of words", SPAN, at_most=2 * villages.UNIGRAM)
    title = "Masking rate and model size (arXiv 2202.08005)"
    derived = {f"{size}, gain": Derived(f"{size}, 40 % less 15 %", (name_of(size, 0.4), name_of(size, 0.15))) for size in SIZES}
    return Study("mask_rate", title, cells, seeds, metrics, relations, derive=gains, derived=derived, gates=(gate,))


def gains(results: Results) -> Results:
    """Adds, for each size and seed, the nats at 15 % minus those at 40 %."""
    for size in SIZES:
        less, more = (results.get(name_of(size, rate), {}) for rate in (0.15, 0.4))
        for seed in more.keys() & less.keys():
            pair = [r[seed]["metrics"].get(SPAN) for r in (less, more)]
            if None not in pair:
                results.setdefault(f"{size}, gain", {})[seed] = derived_result({GAIN: pair[0] - pair[1]})
    return results
