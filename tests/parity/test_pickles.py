"""Pickled weights: files of all PyTorch versions are read; anything but a dict of plain tensors is refused."""

import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.numpy import load_file  # noqa: E402

from lm.conversion import unpickle  # noqa: E402

STATE = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.ones(2, dtype=torch.bfloat16).float()}


def read(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["unpickle", str(tmp_path / "in.bin"), str(tmp_path / "out.safetensors")])
    unpickle.main()
    return load_file(tmp_path / "out.safetensors")


@pytest.mark.parametrize("zipped", [True, False])  # False: as before PyTorch 1.6
def test_both_formats_are_read(monkeypatch, tmp_path, zipped):
    torch.save(STATE, tmp_path / "in.bin", _use_new_zipfile_serialization=zipped)
    for name, tensor in read(monkeypatch, tmp_path).items():
        np.testing.assert_array_equal(tensor, STATE[name].numpy())


REFUSED = {
    "a list": ([torch.ones(2)], "holds a list"),
    "nested": ({"model": STATE}, "'model' is a dict"),
    "a number": ({"a": 3}, "'a' is a int"),
    "no name": ({3: torch.ones(2)}, "3 is a Tensor"),
    "terabytes of 4 bytes": ({"a": torch.ones(1).expand(10**6, 10**6)}, "'a' is larger than the data"),
    "sparse": ({"a": torch.eye(3).to_sparse()}, "sparse"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_table_of_plain_tensors_is_refused(monkeypatch, tmp_path, case):
    value, said = REFUSED[case]
    torch.save(value, tmp_path / "in.bin")
    with pytest.raises(SystemExit, match=said):
        read(monkeypatch, tmp_path)
    assert not (tmp_path / "out.safetensors").exists()
