"""Signals that ask a job to stop are noted for the end of the step; a second Ctrl-C doesn't wait for it."""

import os
import signal
from unittest.mock import Mock

import pytest

from cpt_dist.cluster.stop import SIGNAL
from cpt_dist.training.stop_requests import StopRequests


@pytest.fixture
def run(tmp_path):
    run = Mock(stop_reason=None)
    run.directory.path = tmp_path
    run.config.cluster.signal_margin_seconds = 0
    callback = StopRequests()
    callback.on_start(run)
    yield run
    callback.on_end(run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_noted(run, number):
    os.kill(os.getpid(), number)
    assert run.stop_reason == SIGNAL


def test_a_second_ctrl_c_ends_the_job_at_once_and_the_first_says_so(run, capsys):
    os.kill(os.getpid(), signal.SIGINT)
    assert "Ctrl-C again: at once, without one" in capsys.readouterr().out
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_the_handlers_are_taken_back_at_the_end(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    run = Mock()
    run.directory.path = tmp_path
    run.config.cluster.signal_margin_seconds = 0
    callback = StopRequests()
    callback.on_start(run)
    callback.on_end(run)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)] == before
