"""What a model got wrong, in one report: what it repeats word for word, whether it is as sure as it is right, what it makes of
groups of people, and what it answers where nothing told it the answer. For `python -m lm.evaluate --kinds=memorisation,...`."""

import base64
import html
import io
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from lm import atomic, config, paths, saved
from lm.data import chat
from lm.errors import UserError, nearest
from lm.evaluation import bias, calibration, memorisation, unanswerable
from lm.evaluation.examined import GENERAL, Examined, texts_of
from lm.evaluation.findings import Finding, Interval, Row
from lm.evaluation.span_scores import prepared_of
from lm.models.transformer import Transformer
from lm.objectives import usual
from lm.training.report import STYLE

KINDS: Mapping[str, Callable[[Examined], Finding]] = {
    "memorisation": memorisation.examine,
    "calibration": calibration.examine,
    "bias": bias.examine,
    "unanswerable": unanswerable.examine,
}
COLUMNS = ("measure", "found", "95 % interval", "floor (95 %)")
RECORDS = "it was fine-tuned on records; add --config=FILE with the documents that it was trained on before"
NO_PICTURES = "no pictures: matplotlib is not installed (pip install -e '.[report]')"
Found = Finding | str  # a text says why there is none


def asked(kinds: str) -> list[str]:
    """The kinds that --kinds asks for, [] if it asks for none of KINDS. UserError if it asks for others too."""
    given = list(dict.fromkeys(kind.strip() for kind in kinds.split(",") if kind.strip()))
    if not any(kind in KINDS for kind in given):
        return []
    if other := next((kind for kind in given if kind not in KINDS), None):
        raise UserError(f"--kinds: {other!r} is not one of the report's kinds{nearest(other, KINDS)}; ask for it by itself")
    return given


def evaluate(
    folder: str,
    run: config.Run | None = None,
    *,
    kinds: list[str],
    count: int,
    seed: int,
    batch_size: int,
    items: str | None = None,
    out: str | None = None,
) -> tuple[dict[str, Found], Path]:
    """The findings of the model in `folder`, by kind, and the folder in which they were written: errors.json, report.html and a
    picture of each (default: FOLDER/errors).

    Data and objective are those of `run`, by default of the run that trained the model. A kind that the model cannot be asked
    for is refused with the reason; UserError if all are, or a file of items is wrong.
    """
    if items is not None and "calibration" not in kinds:
        raise UserError(f"--items={items} are items of the kind calibration: add it to --kinds")
    source = saved.open(folder)
    target = _target(out, source)
    examined, about = _examined(source, run, count=count, seed=seed, batch_size=batch_size)
    found: dict[str, Found] = {}
    for kind in kinds:
        if kind == "calibration" and items is not None:
            found[kind] = calibration.examine(examined, items)
            continue
        try:
            found[kind] = KINDS[kind](examined)
        except UserError as error:
            found[kind] = str(error)
    if all(isinstance(each, str) for each in found.values()):
        raise UserError("; ".join(f"{kind}: {why}" for kind, why in found.items()))
    if jax.process_index() == 0:
        _write(target, about, found)
    return found, target


def _examined(
    source: saved.Saved, run: config.Run | None, *, count: int, seed: int, batch_size: int
) -> tuple[Examined, dict[str, Any]]:
    """The model and its texts, and what the report says of it."""
    if source.model.head is None or source.model.head.outputs is not None:
        raise UserError(
            f"--from={source.folder} has no head over the vocabulary, so it is sure of no word; give a language model"
        )
    own, of, tokenizer, architecture = run is None, run or source.run, source.tokenizer(), source.model.architecture
    objective = of.objective if of else usual(architecture)
    documents, why = None, GENERAL if of is None else RECORDS
    if of is not None and not isinstance(of.recipe, config.Finetune):
        data = prepared_of(of, tokenizer, own=own)
        documents = texts_of(of, data, architecture, step=source.step if own else None)
    try:
        talk = chat.of(source) if architecture == "decoder" else None
    except UserError:
        talk = None
    settings: dict[str, Any] = dict(count=count, seed=seed, batch_size=batch_size, documents=documents, chat=talk)
    params = source.params(device=jax.local_devices()[0])
    examined = Examined(Transformer(source.model), params, objective, tokenizer, no_documents=why, **settings)
    about = {
        "from": str(source.folder),
        "architecture": architecture,
        "objective": config.kind_of(type(objective)),
        "step": source.step,
        "data": None if documents is None else documents.data.fingerprint,
        "rows_read": None if documents is None else documents.read,
        "seed": seed,
    }
    return examined, about


def _target(out: str | None, source: saved.Saved) -> Path:
    """The folder to write into."""
    if out is None:
        if str(source.folder).startswith("gs://"):
            raise UserError(f"the report of {source.folder} is written to a local folder: add --out=FOLDER")
        return Path(source.folder) / "errors"
    target = paths.local(out, name="--out")
    if not target.parent.is_dir() or (target.exists() and not target.is_dir()):
        raise UserError(f"--out={out} must be a folder, new or not, in one that exists; the report has several files")
    return target


# ------------------------------------------------------------------------------------------------------- files


def _write(target: Path, about: Mapping[str, Any], found: Mapping[str, Found]) -> None:
    target.mkdir(exist_ok=True)
    pictures = {kind: _picture(each) for kind, each in found.items() if isinstance(each, Finding)}
    for kind, picture in pictures.items():
        if picture is not None:
            atomic.write_bytes(target / f"{kind}.png", picture)
    atomic.write_json(target / "errors.json", {**about, "kinds": {kind: _json(each) for kind, each in found.items()}})
    atomic.write_bytes(target / "report.html", _page(about, found, pictures).encode(errors="backslashreplace"))


def _picture(finding: Finding) -> bytes | None:
    """A PNG; None without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(11, 4.5), layout="constrained")
    finding.draw(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    return buffer.getvalue()


def _json(found: Found) -> dict[str, Any]:
    if isinstance(found, str):
        return {"refused": found}
    return {"rows": [_row(row) for row in found.rows], "notes": list(found.notes), **found.details}


def _row(row: Row) -> dict[str, Any]:
    def of(x: Interval | float | None) -> Any:
        if not isinstance(x, Interval):
            return {"value": None if x is None or math.isnan(x) else float(x)}
        return {"value": x.value, "low": x.low, "high": x.high}

    return {"measure": row.measure, **of(row.found), "floor": None if row.floor is None else of(row.floor)}


def _page(about: Mapping[str, Any], found: Mapping[str, Found], pictures: Mapping[str, bytes | None]) -> str:
    escaped = partial(html.escape, quote=True)
    title = escaped(f"What {Path(about['from']).name} got wrong")
    pieces = [f"<h1>{title}</h1>", "<table>"]
    pieces += [f"<tr><th>{escaped(name)}<td>{escaped(str(value))}" for name, value in about.items()]
    pieces.append("</table>")
    for kind, each in found.items():
        pieces.append(f"<h2>{escaped(kind)}</h2>")
        if isinstance(each, str):
            pieces.append(f"<p>Not examined: {escaped(each)}</p>")
            continue
        head = "".join(f"<th>{escaped(name)}" for name in COLUMNS)
        lines = ("".join(f"<td>{escaped(cell)}" for cell in row.shown()) for row in each.rows)
        pieces += [f"<table><tr>{head}", *(f"<tr>{line}" for line in lines), "</table>", "<ul>"]
        pieces += [*(f"<li>{escaped(note)}" for note in each.notes), "</ul>"]
        picture = pictures[kind]
        if picture is None:
            pieces.append(f"<p>{escaped(NO_PICTURES)}</p>")
        else:
            pieces.append(f'<img alt="{escaped(kind)}" src="data:image/png;base64,{base64.b64encode(picture).decode()}">')
        if each.shown:
            pieces.append(f"<pre>{escaped(chr(10).join(each.shown))}</pre>")
    return f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>" + "\n".join(pieces)


# ------------------------------------------------------------------------------------------------------- terminal


def show(found: Mapping[str, Found], target: Path) -> None:
    """Prints the findings as a table each, and where the report is."""
    console = Console()
    for kind, each in found.items():
        if isinstance(each, str):
            console.print(f"{kind}: not examined: {each}", markup=False)
            continue
        table = Table(title=kind, title_justify="left")
        for name in COLUMNS:
            table.add_column(name, justify="left" if name == COLUMNS[0] else "right")
        for row in each.rows:
            table.add_row(*row.shown())
        console.print(table)
        for note in each.notes:
            console.print(f"- {note}", markup=False, highlight=False)
        for text in each.shown:
            console.print(text, markup=False, highlight=False)
        console.print()
    console.print(f"report: {target / 'report.html'}", markup=False, highlight=False)
