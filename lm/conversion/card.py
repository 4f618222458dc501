"""The model card of an exported model (arXiv 1810.03993): README.md, with the metadata that the hub reads at its head."""

import json
from typing import Any

from lm import config
from lm.errors import printable

USE = """from transformers import AutoTokenizer, {kind}

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = {kind}.from_pretrained("{name}")"""

COUNTED = {"tokens": "tokens of documents", "items": "records"}  # held-out figures that say how many the others are of
OVER = "Intervals are over documents or records, not over runs."


def written(source: Any, settings: dict[str, Any], count: int, *, name: str, licence: str | None) -> str:
    """Returns the text of the card.

    source: a `lm.saved.Saved`
    settings: the config.json of the export
    count: the number of parameters
    name: what it is loaded by: a folder, or a repository of the hub
    licence: as the hub spells it, such as "apache-2.0"; None: the card says that none is given
    """
    architecture = str(settings["architectures"][0])
    parts = {
        "": f"A model of the type `{settings['model_type']}` with {count:,} parameters, written by `python -m lm.convert`.",
        "Use": f"```python\n{USE.format(kind=_auto(architecture), name=name)}{_of_a_text(source, architecture, name)}\n```",
    }
    parts |= _of_run(source) if source.run is not None else _converted(source)
    parts["Licence"] = "None is given: ask whoever published the model." if licence is None else f"`{licence}`."
    return _head(source, architecture, licence) + f"\n# {_line(name.rstrip('/').rpartition('/')[2])}\n" + _sections(parts)


def _of_a_text(source: Any, architecture: str, name: str) -> str:
    """Lines of code that give the probabilities of a text's classes, of a model that was fine-tuned to tell them apart."""
    if not _tells_classes(source):
        return ""
    if architecture.endswith("ForSequenceClassification"):
        made = f'pipeline("text-classification", model="{name}", top_k=None)'
        return f'\n\nfrom transformers import pipeline\n\nprobabilities = {made}("a text")'
    at = 0 if source.model.decoder is None else -1
    read = f'model(**tokenizer("a text", return_tensors="pt")).logits[0, {at}].softmax(-1)'
    return f"\n\nprobabilities = {read}  # of the text, at its {'last' if at else 'first'} token"


def _tells_classes(source: Any) -> bool:
    recipe = source.run.recipe if source.run else None
    return isinstance(recipe, config.Finetune) and recipe.how == "head"


def _auto(architecture: str) -> str:
    """The class of transformers that opens the model."""
    kinds = {"ForCausalLM": "AutoModelForCausalLM", "LMHeadModel": "AutoModelForCausalLM"}
    kinds |= {"ForMaskedLM": "AutoModelForMaskedLM", "ForConditionalGeneration": "AutoModelForSeq2SeqLM"}
    kinds |= {end: f"AutoModel{end}" for end in ("ForSequenceClassification", "ForTokenClassification")}
    return next((kind for end, kind in kinds.items() if architecture.endswith(end)), "AutoModel")


def _head(source: Any, architecture: str, licence: str | None) -> str:
    tasks = {"AutoModelForCausalLM": "text-generation", "AutoModelForMaskedLM": "fill-mask"}
    tasks |= {
        "AutoModelForSequenceClassification": "text-classification",
        "AutoModelForTokenClassification": "token-classification",
    }
    lines = ["library_name: transformers"]
    task = tasks.get(_auto(architecture))
    task = None if task == "token-classification" and _tells_classes(source) else task  # tokens, but the classes are of texts
    lines += [f"pipeline_tag: {task}"] if task else []
    lines += [f"license: {json.dumps(licence)}"] if licence else []
    lines += ["tags:", "- conversational"] if source.run is not None and source.run.data.conversations else []
    return "\n".join(["---", *lines, "---", ""])


def _of_run(source: Any) -> dict[str, str]:
    run, summary, manifest = source.run, _json(source, "summary.json"), _json(source, "manifest.json")
    summary = summary if summary.get("step") == source.step else {}  # of another checkpoint
    sources = [
        f"- `{_line(n)}`: {s.kind} `{_line(s.path)}`, {s.format}, weight {s.weight:g}" for n, s in run.data.sources.items()
    ]
    tokens = f"\n\nTrained on {summary['tokens_seen']:,} tokens." if "tokens_seen" in summary else ""
    recipe, objective = config.kind_of(type(run.recipe)), config.kind_of(type(run.objective))
    start = f", from `{_line(run.train.init_from)}`" if run.train.init_from else ", from random parameters"
    how = f"Recipe {recipe}, objective {objective}{start}"
    return {
        "Data": "\n".join(sources) + tokens,
        "Training": f"{how}: step {source.step:,} of {run.train.steps:,}, {run.train.batch_size} rows a step, "
        f"{run.optimizer.name} at {run.optimizer.learning_rate:g}, seed {run.train.seed}.",
        "Compute and its cost": _compute(summary, manifest),
        "Results": _results(source, summary),
        "Limits": _limits(run, source),
    }


def _converted(source: Any) -> dict[str, str]:
    return {
        "Data, training, compute": "Not known here: the model was converted, averaged or merged.",
        "Results": _results(source, {}),
        "Limits": "Those of the model that it was made of.",
    }


def _compute(summary: dict[str, Any], manifest: dict[str, Any]) -> str:
    if "model_flops" not in summary:
        return "The run has no summary: it was not finished."
    said = [f"{summary['model_flops']:.3g} FLOPs of the model, forward and backward, without recomputation."]
    devices, wall = manifest.get("devices", {}), (summary.get("goodput") or {}).get("wall_seconds")
    if devices and wall:
        count, kind = devices["count"], _line(devices["kind"])
        said.append(
            f"Cost: {wall * count / 3600:,.2g} device-hours ({wall:,.0f} s on {count} of `{kind}`), evaluation, compilation "
            "and checkpoints included, to be multiplied by the price of such a device."
        )
    return " ".join(said)


def _results(source: Any, summary: dict[str, Any]) -> str:
    ends = summary.get("heldout_intervals") or {}
    between = lambda found: "{:.4g} to {:.4g}".format(*found) if found else ""
    rows = [
        ("held-out " + n.replace("_", " "), f"{v:.4g}", between(ends.get(n)))
        for n, v in (summary.get("heldout") or {}).items()
        if n not in COUNTED
    ]
    rows += [
        (f"baseline {n.replace('_', ' ')} (bits per byte)", f"{v:.4g}", "") for n, v in (summary.get("baselines") or {}).items()
    ]
    for task, found in _json(source, "task_scores.json").get("tasks", {}).items():
        for metric, m in found["metrics"].items():
            rows.append((f"{task}: {metric}", f"{m['value']:.4g}", f"{m['low']:.4g} to {m['high']:.4g}" if "low" in m else ""))
    if not rows:
        return "None are known."
    table = "\n".join(f"| {_line(name)} | {value} | {between} |" for name, value, between in rows)
    heldout = summary.get("heldout") or {}
    of = next((f"{heldout[n]:,.0f} {what}" for n, what in COUNTED.items() if heldout.get(n)), None)
    about = f"\n\nHeld-out figures are means over {of} that were not trained on, of one run. {OVER}" if of else ""
    return f"| | value | 95 % interval |\n|---|---|---|\n{table}{about}"


def _limits(run: Any, source: Any) -> str:
    length = max(run.data.encoder_length or 0, run.data.decoder_length or 0)
    said = [f"- It was trained on rows of {length:,} tokens; longer texts are outside of what it has seen."] if length else []
    if not run.data.conversations and not isinstance(run.recipe, config.Finetune):
        said.append("- It was not trained to answer: it continues or fills in texts.")
    both = "- It read texts from both sides (recipe.prefix), which its class in transformers does not: outputs differ there."
    said += [both] if getattr(run.recipe, "prefix", None) else []
    said += [
        "- It was trained with one seed; another gives other figures.",
        "- It repeats what its data says, errors and bias included, and was not tested for harm.",
    ]
    said.append(
        "- Names of special tokens in a text are read as these tokens, as everywhere in transformers; "
        "`tokenizer(text, split_special_tokens=True)` reads them as letters."
    )
    return "\n".join(said)


def _sections(parts: dict[str, str]) -> str:
    return "".join(f"\n## {title}\n\n{text}\n" if title else f"\n{text}\n" for title, text in parts.items())


def _json(source: Any, name: str) -> dict[str, Any]:
    """A file beside the checkpoints; {} if there is none."""
    path = source.folder / name
    return json.loads(path.read_bytes()) if path.exists() else {}


def _line(text: Any) -> str:
    """A name from a config as it may stand in a line or a table of Markdown."""
    return printable(str(text)).replace("`", "'").replace("|", "\\|")
