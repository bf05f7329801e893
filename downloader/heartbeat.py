"""Something to do every few seconds while something else takes long."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def every(seconds: float, action: Callable[[], None]) -> Iterator[None]:
    """Call `action` every `seconds` on a thread of its own while the body runs."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(seconds):
            action()

    # Daemon: SIGTERM must not wait for it.
    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        stop.set()
