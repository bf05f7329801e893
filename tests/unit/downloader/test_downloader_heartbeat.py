import threading

from downloader.heartbeat import every


def test_it_beats_while_the_body_runs_and_stops_after() -> None:
    beats = threading.Semaphore(0)
    before = set(threading.enumerate())
    with every(0.001, beats.release):
        for _ in range(3):
            assert beats.acquire(timeout=10)
        [thread] = set(threading.enumerate()) - before
    thread.join(timeout=10)
    assert not thread.is_alive()
