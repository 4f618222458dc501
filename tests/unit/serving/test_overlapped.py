"""What the host does while the device computes."""

from lm.generation.engine import Engine
from lm.serving.overlapped import Overlapped


def test_it_is_done_once_the_program_runs_and_before_its_end_is_awaited(monkeypatch):
    done = []
    monkeypatch.setattr(Engine, "_call", lambda self, name: done.append(name))
    monkeypatch.setattr(Engine, "step", lambda self: [self._call("insert"), self._call("decode"), done.append("awaited")])
    engine = object.__new__(Overlapped)
    engine.step(lambda: done.append("meanwhile"))
    engine.step()
    assert done == ["insert", "decode", "meanwhile", "awaited", "insert", "decode", "awaited"]
