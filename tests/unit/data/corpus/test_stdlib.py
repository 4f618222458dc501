"""The standard library as a corpus: programs and no tests, the same on every machine with this Python."""

import ast
import sysconfig
from pathlib import Path

import pytest

from lm import config
from lm.data.corpus import stdlib
from lm.data.corpus.sources import identity, open_source
from lm.errors import UserError


def test_files_are_programs_of_the_library():
    found = dict(stdlib.files())
    assert {"argparse.py", "json/decoder.py", "collections/__init__.py"} <= found.keys() and list(found) == sorted(found)
    assert not [name for name in found if "test" in Path(name).parts or "site-packages" in name or "encodings" in name]
    assert sum(path.stat().st_size for path in found.values()) > 5e6
    ast.parse(found["argparse.py"].read_text())


def test_a_document_is_a_file_with_its_name(tmp_path, monkeypatch):
    some = stdlib.files()[:3]
    monkeypatch.setattr(stdlib, "files", lambda: some)
    source = config.Source(kind="tfds", path="stdlib")
    documents = open_source(source, cache=str(tmp_path))
    assert [documents[i].key for i in range(len(documents))] == [name for name, _ in some]
    assert documents[1].text == some[1][1].read_text(encoding="utf-8") and not documents.transcripts
    assert identity(source)["version"] == stdlib.version()


def test_a_python_without_sources_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match="the corpus 'stdlib' is Python's library, and .* has no source files: take another"):
        stdlib.files()
