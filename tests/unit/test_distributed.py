"""How hosts find each other: what the environment says, and the roll call, over real sockets."""

import signal
import socket
import threading
import time

import jax
import numpy as np
import pytest

from lm import distributed, process
from lm.errors import HostMissing, UserError
from tests.processes import HANGS, free_port

THREE = {"JAX_COORDINATOR_ADDRESS": "node0:1234", "LM_PROCESSES": "3", "LM_PROCESS": "2"}


def test_what_the_environment_says():
    assert distributed._told({}) is None
    assert distributed._told(THREE) == dict(coordinator_address="node0:1234", num_processes=3, process_id=2)
    assert distributed._told({"LM_PROCESSES": "1", "SLURM_STEP_NODELIST": "node[0-3]"}) == dict(num_processes=1)
    # jax's own variable alone is left to jax: it overrides what it would detect.
    assert distributed._told({"JAX_COORDINATOR_ADDRESS": "node0:1234"}) is None


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"LM_PROCESS": "3"}, "LM_PROCESS=3 of LM_PROCESSES=3"),
        ({"LM_PROCESSES": "three"}, "LM_PROCESSES=three"),
        ({"JAX_COORDINATOR_ADDRESS": "node0"}, "<host 0>:<port>"),
        ({"JAX_COORDINATOR_ADDRESS": ""}, "JAX_COORDINATOR_ADDRESS is not"),
        ({"LM_PROCESS": ""}, "LM_PROCESS is not"),
    ],
)
def test_half_of_it_is_refused(change, cause):
    with pytest.raises(UserError, match=cause):
        distributed._told(THREE | change)


def test_a_lone_machine_is_not_asked():
    assert not distributed._may_find({"JAX_PLATFORMS": "cpu"})
    assert not distributed._may_find({"JAX_PLATFORMS": "cpu", "KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    for name in (
        "JAX_COORDINATOR_ADDRESS",
        "SLURM_STEP_NODELIST",
        "OMPI_COMM_WORLD_SIZE",
        "JOB_COMPLETION_INDEX",
        "TPU_WORKER_HOSTNAMES",
    ):
        assert distributed._may_find({"JAX_PLATFORMS": "cpu", name: "x"})


def test_slurm_is_found_as_jax_finds_it(monkeypatch):
    job = dict(SLURM_JOB_ID="5", SLURM_STEP_NODELIST="node[3-7]", SLURM_NTASKS="5", SLURM_PROCID="2", SLURM_LOCALID="0")
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JAX_COORDINATOR_PORT", "4321")
    found = distributed._found()
    assert found == dict(coordinator_address="node3:4321", num_processes=5, process_id=2, local_device_ids=[0])
    monkeypatch.setenv("SLURM_NTASKS", "many")
    with pytest.raises(UserError, match="cannot find the other processes .*LM_PROCESSES=1"):
        distributed._found()


def test_a_scheduler_that_jax_cannot_read_is_not_passed_over(monkeypatch):
    for name in (distributed.ADDRESS, *distributed.JOBS):
        monkeypatch.delenv(name, raising=False)
    assert distributed._found() is None
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[3-7]")  # and nothing else of Slurm's
    with pytest.raises(UserError, match="SLURM_STEP_NODELIST is set, .*LM_PROCESSES=1"):
        distributed._found()
    monkeypatch.delenv("SLURM_STEP_NODELIST")
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "node0:1234")
    with pytest.raises(UserError, match="JAX_COORDINATOR_ADDRESS is set, .*set .*LM_PROCESSES and LM_PROCESS"):
        distributed._found()


def test_times_are_whole_seconds(monkeypatch):
    assert distributed._seconds("LM_HEARTBEAT_SECONDS", 30) == 30
    monkeypatch.setenv("LM_HEARTBEAT_SECONDS", "1.5")
    with pytest.raises(UserError, match="LM_HEARTBEAT_SECONDS=1.5"):
        distributed._seconds("LM_HEARTBEAT_SECONDS", 30)


def calls(processes, present, seconds, port):
    """What each of the present hosts hears: None if all are there, else the message."""
    heard = {}

    def call(i):
        try:
            distributed._roll_call(f"127.0.0.1:{port}", processes, i, seconds)
            heard[i] = None
        except HostMissing as error:
            heard[i] = str(error)

    threads = [threading.Thread(target=call, args=(i,)) for i in present]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return heard


def test_all_present():
    assert calls(4, [3, 1, 2, 0], HANGS, free_port()) == dict.fromkeys(range(4))


def test_all_hear_who_is_missing():
    for seconds in (0.7, 7, 70):  # on a busy machine others may be late as well
        heard = calls(4, [0, 1, 3], seconds, free_port())
        said = f"host 2 of 4 did not arrive at 'start' within {seconds:g} s"
        if all(text.startswith(said) for text in heard.values()):
            break
    assert len(heard) == 3 and all(text.startswith(said) for text in heard.values()), heard


def test_without_host_0_the_others_say_so():
    began = time.monotonic()
    heard = calls(3, [1, 2], 0.5, free_port())
    assert all(text.startswith("host 0 of 3 did not arrive") for text in heard.values()) and len(heard) == 2
    assert time.monotonic() - began < HANGS


def test_a_stranger_at_the_port_changes_nothing():
    port, heard = free_port(), {}
    thread = threading.Thread(target=lambda: heard.update(calls(2, [0], HANGS, port)))
    thread.start()
    for said in (b"GET / HTTP/1.1", b"7", b"0", b""):
        end = time.monotonic() + HANGS
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=HANGS) as line:
                    line.sendall(said)
                break
            except ConnectionRefusedError:  # not listening yet
                assert time.monotonic() < end
                time.sleep(0.02)
    assert calls(2, [1], HANGS, port) == {1: None}
    thread.join()
    assert heard == {0: None}


def test_a_port_in_use_is_a_mistake_of_the_users():
    with socket.create_server(("", 0)) as server:
        with pytest.raises(UserError, match="cannot be used .*give a free one"):
            distributed._roll_call(f"127.0.0.1:{server.getsockname()[1]}", 2, 0, 1)


def test_alone_everything_is_at_hand():
    distributed.barrier("nowhere")
    assert distributed.is_main_process() and distributed.broadcast(7) == 7 and distributed.broadcast(None) is None
    x = jax.numpy.arange(12.0).reshape(4, 3)
    assert np.array_equal(distributed.fetched(x), x) and np.array_equal(np.concatenate([*distributed.pieces(x)]), x)


@pytest.fixture
def handlers():
    """Puts signal handlers back afterwards."""
    before = {number: signal.getsignal(number) for number in process.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_ends_a_host_that_is_done_and_waits_for_host_0(monkeypatch, handlers):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    for code, expected in ((0, signal.SIG_DFL), (75, signal.SIG_IGN), (130, signal.SIG_IGN)):
        with pytest.raises(SystemExit):
            distributed.run(lambda code=code: code)
        assert {signal.getsignal(number) for number in process.SIGNALS} == {expected}, code


def test_alone_a_process_ends_as_it_always_did(handlers):
    def fails():
        raise OSError("planted")

    with pytest.raises(SystemExit) as ended:
        distributed.run(lambda: 2)
    assert ended.value.code == 2 and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    with pytest.raises(OSError, match="planted"):
        distributed.run(fails)
