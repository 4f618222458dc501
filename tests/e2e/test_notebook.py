"""notebooks/first_run.ipynb runs from top to bottom, on few steps of a small text and without its installation."""

import os
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

NOTEBOOK = Path(__file__).parents[2] / "notebooks/first_run.ipynb"


def tagged(notebook, tag):
    (cell,) = (cell for cell in notebook.cells if tag in cell.metadata.get("tags", ()))
    return cell


def test_it_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # those of the kernel's own libraries
def test_it_runs(corpus, tmp_path, monkeypatch):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.remove(tagged(notebook, "install"))
    settings = {
        "data.sources.sotu.kind": "jsonl",
        "data.sources.sotu.path": f"{corpus}/tiny.jsonl",
        "data.cache": f"{corpus}/cache",
    }
    settings |= {
        "data.tokenizer.vocab_size": "400",
        "data.holdout": "0.2",
        "optimizer.schedule.warmup": "1",
        "train.batch_size": "4",
    }
    settings |= {
        "model.decoder.num_layers": "1",
        "log.sample_tokens": "4",
        "log.tensorboard": "False",
        "data.decoder_length": "32",
    }
    tagged(notebook, "parameters").source = f"STEPS = 4\nWORKDIR = 'runs/notebook'\nSETTINGS = {settings!r}\n"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(NOTEBOOK.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    said = ["".join(output.text for output in cell.outputs if output.get("name") == "stdout") for cell in code]
    assert any("bits per held-out byte; xz: " in text for text in said)
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
    written = next(text for cell, text in zip(code, said, strict=True) if "writer(WORKDIR" in cell.source)
    assert written.count("\n") == 8, written  # three samples and five tokens
    assert (tmp_path / "runs/notebook/report.html").stat().st_size > 10_000
