# SPDX-License-Identifier: Apache-2.0
import os
import signal
import threading

import pytest

from common.stopping import stopped_by_signal


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_the_event_and_the_former_handler_comes_back(number: signal.Signals) -> None:
    before, stopping = signal.getsignal(number), threading.Event()
    with pytest.raises(RuntimeError, match="on purpose"), stopped_by_signal(stopping):
        os.kill(os.getpid(), number)
        assert stopping.wait(5)
        raise RuntimeError("on purpose")
    assert signal.getsignal(number) is before
