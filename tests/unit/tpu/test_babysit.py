"""The babysitter's decisions, without gcloud; e2e/test_tpu_scripts.py tests it with the fake one."""

import pytest

from lm.errors import UserError
from tpu.babysit import Actions, babysit, judge
from tpu.gcloud import GcloudFailed
from tpu.machines import State
from tpu.remote import Host


def _host(state: str, code: int | None = None, step: int | None = None, name: str = "h", stopped: bool = False) -> Host:
    return Host(name, state, code, stopped, step, f"{name}'s last line")


def _sit(*outcomes: list[Host], states: list[State | GcloudFailed] | None = None) -> list[str]:
    """The actions of a babysitter of two hosts. Each launch ends at once with the next of `outcomes`."""
    did, left, seen = [], list(outcomes), [_host("bare"), _host("bare")]
    told = states or [State("ready", "READY")]

    def state() -> State:
        now = told.pop(0) if len(told) > 1 else told[0]
        if isinstance(now, GcloudFailed):
            raise now
        return now

    def launch() -> None:
        did.append("launch")
        seen[:] = left.pop(0)

    def delete() -> None:
        did.append("delete")
        seen[:] = [_host("bare"), _host("bare")]

    def sleep() -> None:
        assert len(did) < 50
        did.append("sleep")

    do = Actions(
        state=state,
        create=lambda: did.append("create"),
        delete=delete,
        setup=lambda: did.append("setup"),
        launch=launch,
        look=lambda: list(seen),
        stop=lambda: did.append("stop"),
    )
    babysit(do, 2, sleep=sleep, say=lambda text: None)
    return [what for what in did if what != "sleep"]


ZERO = _host("ended", 0)


def test_a_failure_is_tried_again_where_it_is_another():
    ends = [_host("ended", 1, 3), _host("ended", 1, 5), _host("lost", None, 5), _host("ended", 75, 6), _host("ended", 1, 3)]
    assert _sit(*([end, ZERO] for end in ends), [ZERO, ZERO]) == ["setup", *["launch"] * 6]  # on the same machines


def test_the_same_failure_twice_ends_it():
    bad = [_host("ended", 1, 3, "pod-w0"), _host("ended", 69, 4)]  # the second host ended because the first was missing
    with pytest.raises(UserError, match="same way, exit code 1 at step 3; the last line of pod-w0: pod-w0's last line"):
        _sit(bad, bad[::-1])
    with pytest.raises(UserError, match="twice in the same way, a death without an exit code at step None"):
        _sit([_host("lost"), _host("lost")], [_host("lost"), _host("ended", 69)])


def test_a_mistake_ends_it_at_once():
    with pytest.raises(UserError, match="a mistake in its input, on pod-w1: pod-w1's last line"):
        _sit([_host("ended", 1), _host("ended", 2, None, "pod-w1")])


def test_requests_that_come_to_nothing_end_it():
    absent, failed = State("absent", ""), State("gone", "FAILED no room")
    with pytest.raises(UserError, match="10 requests in a row failed, the last: FAILED no room"):
        _sit(states=[absent, failed] * 20)
    ready = State("ready", "READY")  # preempted machines do not count as refused requests
    did = _sit([_host("running")] * 2, [ZERO, ZERO], states=[failed] * 9 + [ready] + [failed] * 9 + [ready])
    assert did.count("delete") == 18


def test_trouble_with_gcloud_passes_or_ends_it():
    failed, ready = GcloudFailed("UNAVAILABLE"), State("ready", "READY")
    assert _sit([ZERO, ZERO], states=[failed] * 9 + [ready]) == ["setup", "launch"]
    with pytest.raises(GcloudFailed):
        _sit(states=[failed] * 10 + [ready])


def test_what_it_makes_of_what_hosts_say():
    host, zero = _host, ZERO
    saved, runs, idle = host("ended", 75), host("running"), host("idle")
    cases = {
        "done": [[zero, zero], [zero, zero, zero]],
        "running": [[runs, runs], [runs, zero]],
        "start": [[idle, idle], [saved, saved], [saved, zero], [host("bare"), idle]],
        "failed": [
            [host("ended", 1), saved],
            [host("ended", 69), host("ended", 69)],
            [host("lost"), zero],
            [host("ended", 130), saved],
        ],
        "partial": [[runs, saved], [runs, idle], [runs], [zero], []],
        "stopped": [[host("ended", 75, stopped=True), saved]],
    }
    for verdict, of in cases.items():
        for seen in of:
            assert judge(seen, 2) == verdict, seen
