"""Signals that end a run: SIGTERM and SIGHUP interrupt a command as Ctrl-C does."""

import signal
import threading
import time
from types import FrameType
from typing import Any

NAMES = ("SIGTERM", "SIGHUP")  # the latter is unknown to Windows
AGAIN = 5.0  # seconds in which another signal is the same request: `timeout`, for one, sends two


class EndSignals:
    """Raises KeyboardInterrupt in the main thread for SIGTERM and SIGHUP, until `restore`. `number` is the signal that
    came, or None. A signal that is ignored from the start (`nohup`) stays so."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._at = 0.0
        self._before: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (getattr(signal, name) for name in NAMES if hasattr(signal, name)):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._interrupt)

    def _interrupt(self, number: int, _: FrameType | None) -> None:
        if self.number is not None and time.monotonic() - self._at < AGAIN:
            return
        self.number, self._at = number, time.monotonic()
        raise KeyboardInterrupt

    def restore(self) -> None:
        """Give the signals back to those who had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
