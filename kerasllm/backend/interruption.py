"""A Ctrl-C that waits."""

import signal
import threading


def whole(function, *arguments):
    """`function(*arguments)`, after which a Ctrl-C that comes in it takes effect; a second one does at once."""
    handler = signal.getsignal(signal.SIGINT)
    # Signals are handled in the main thread. What is not callable leaves them to the system.
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        return function(*arguments)
    waiting = []

    def wait(*signal_and_frame):
        waiting.append(signal_and_frame)
        if len(waiting) > 1:
            handler(*signal_and_frame)

    signal.signal(signal.SIGINT, wait)
    try:
        return function(*arguments)
    finally:
        signal.signal(signal.SIGINT, handler)
        if len(waiting) == 1:
            handler(*waiting[0])
