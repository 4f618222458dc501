"""How hosts find each other: environment variables, jax's detection, and the roll call over real sockets."""

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


def test_environment_variables():
    assert distributed._from_environment({}) is None
    assert distributed._from_environment(THREE) == dict(coordinator_address="node0:1234", num_processes=3, process_id=2)
    assert distributed._from_environment({"LM_PROCESSES": "1", "SLURM_STEP_NODELIST": "node[0-3]"}) == dict(num_processes=1)
    # jax's own variable alone is left to jax, where it overrides the detected address.
    assert distributed._from_environment({"JAX_COORDINATOR_ADDRESS": "node0:1234"}) is None


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
def test_incomplete_or_invalid_variables_are_refused(change, cause):
    with pytest.raises(UserError, match=cause):
        distributed._from_environment(THREE | change)


def test_detection_is_skipped_on_a_single_machine():
    assert not distributed._should_detect({"JAX_PLATFORMS": "cpu"})
    assert not distributed._should_detect({"JAX_PLATFORMS": "cpu", "KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    for name in (
        "JAX_COORDINATOR_ADDRESS",
        "SLURM_STEP_NODELIST",
        "OMPI_COMM_WORLD_SIZE",
        "JOB_COMPLETION_INDEX",
        "TPU_WORKER_HOSTNAMES",
    ):
        assert distributed._should_detect({"JAX_PLATFORMS": "cpu", name: "x"})


def test_slurm_is_detected_by_jax(monkeypatch):
    job = dict(SLURM_JOB_ID="5", SLURM_STEP_NODELIST="node[3-7]", SLURM_NTASKS="5", SLURM_PROCID="2", SLURM_LOCALID="0")
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JAX_COORDINATOR_PORT", "4321")
    found = distributed._detect()
    assert found == dict(coordinator_address="node3:4321", num_processes=5, process_id=2, local_device_ids=[0])
    monkeypatch.setenv("SLURM_NTASKS", "many")
    with pytest.raises(UserError, match="cannot find the other processes .*LM_PROCESSES=1"):
        distributed._detect()


def test_a_scheduler_that_jax_cannot_read_is_an_error(monkeypatch):
    for name in (distributed.ADDRESS, *distributed.JOBS):
        monkeypatch.delenv(name, raising=False)
    assert distributed._detect() is None
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[3-7]")  # and nothing else of Slurm's
    with pytest.raises(UserError, match="SLURM_STEP_NODELIST is set, .*LM_PROCESSES=1"):
        distributed._detect()
    monkeypatch.delenv("SLURM_STEP_NODELIST")
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "node0:1234")
    with pytest.raises(UserError, match="JAX_COORDINATOR_ADDRESS is set, .*set .*LM_PROCESSES and LM_PROCESS"):
        distributed._detect()


def test_timeouts_are_integers(monkeypatch):
    assert distributed.seconds_of("LM_HEARTBEAT_SECONDS", 30) == 30
    monkeypatch.setenv("LM_HEARTBEAT_SECONDS", "1.5")
    with pytest.raises(UserError, match="LM_HEARTBEAT_SECONDS=1.5"):
        distributed.seconds_of("LM_HEARTBEAT_SECONDS", 30)


def calls(processes, present, seconds, port):
    """Index -> result of the roll call on each of the `present` hosts: None if it succeeds, otherwise the error text."""
    results = {}

    def call(i):
        try:
            distributed._roll_call(f"127.0.0.1:{port}", processes, i, seconds)
            results[i] = None
        except HostMissing as error:
            results[i] = str(error)

    threads = [threading.Thread(target=call, args=(i,)) for i in present]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_a_complete_roll_call():
    assert calls(4, [3, 1, 2, 0], HANGS, free_port()) == dict.fromkeys(range(4))


def test_every_host_names_the_missing_one():
    for seconds in (0.7, 7, 70):  # on a busy machine other hosts may be late too
        results = calls(4, [0, 1, 3], seconds, free_port())
        expected = f"host 2 of 4 did not arrive at 'start' within {seconds:g} s"
        if all(text.startswith(expected) for text in results.values()):
            break
    assert len(results) == 3 and all(text.startswith(expected) for text in results.values()), results


def test_the_others_name_a_missing_host_0():
    began = time.monotonic()
    results = calls(3, [1, 2], 0.5, free_port())
    assert all(text.startswith("host 0 of 3 did not arrive") for text in results.values()) and len(results) == 2
    assert time.monotonic() - began < HANGS


def test_connections_from_other_programs_are_ignored():
    port, results = free_port(), {}
    thread = threading.Thread(target=lambda: results.update(calls(2, [0], HANGS, port)))
    thread.start()
    for sent in (b"GET / HTTP/1.1", b"7", b"0", b""):
        end = time.monotonic() + HANGS
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=HANGS) as peer:
                    peer.sendall(sent)
                break
            except ConnectionRefusedError:  # not listening yet
                assert time.monotonic() < end
                time.sleep(0.02)
    assert calls(2, [1], HANGS, port) == {1: None}
    thread.join()
    assert results == {0: None}


def test_a_port_in_use_is_a_user_error():
    with socket.create_server(("", 0)) as server:
        with pytest.raises(UserError, match="cannot be used .*give a free one"):
            distributed._roll_call(f"127.0.0.1:{server.getsockname()[1]}", 2, 0, 1)


def test_a_single_process_needs_no_communication():
    distributed.barrier("nowhere")
    assert distributed.is_main_process() and distributed.broadcast(7) == 7 and distributed.broadcast(None) is None
    x = jax.numpy.arange(12.0).reshape(4, 3)
    assert np.array_equal(distributed.fetched(x), x) and np.array_equal(np.concatenate([*distributed.pieces(x)]), x)


@pytest.fixture
def handlers():
    """Restores the signal handlers afterwards."""
    before = {number: signal.getsignal(number) for number in process.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_kills_a_finished_host_that_waits_for_host_0(monkeypatch, handlers):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    for code, expected in ((0, signal.SIG_DFL), (75, signal.SIG_IGN), (130, signal.SIG_IGN)):
        with pytest.raises(SystemExit):
            distributed.run(lambda code=code: code)
        assert {signal.getsignal(number) for number in process.SIGNALS} == {expected}, code


def test_exit_of_a_single_process(handlers):
    def fails():
        raise OSError("planted")

    with pytest.raises(SystemExit) as ended:
        distributed.run(lambda: 2)
    assert ended.value.code == 2 and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    with pytest.raises(OSError, match="planted"):
        distributed.run(fails)
