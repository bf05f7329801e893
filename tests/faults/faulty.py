"""A server that can be told to fail, and what tests ask of one."""

from __future__ import annotations

import fcntl
import io
import itertools
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from serving import REPOSITORY, START, Server

SECRET = "zebra"  # in every prompt and in every exception: no log and no error may hold it
LIMITS = ("--max-steps", "40", "--default-steps", "3", "--max-cost", "200", "--max-rows", "8", "--device", "cpu")
_numbers = itertools.count()


def few(**parameters: object) -> dict[str, Any]:
    """The body of a short request."""
    return {"prompt": SECRET, "parameters": {"num_inference_steps": 3, "seed": 5} | parameters}


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)), dtype=int)


def same(one: bytes, other: bytes) -> bool:
    """Company changes the last bits of a float, and so a pixel by 1."""
    return np.abs(pixels(one) - pixels(other)).max() <= 1


def until(reached: Callable[[], bool]) -> None:
    """For what is told to nobody."""
    end = time.monotonic() + START
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.01)


class FaultyServer(Server):
    """With the stand-ins of standin.py. `orders`: the directory where they look."""

    def __init__(self, volume: Path, orders: Path, *more: str, **environ: str) -> None:
        self.orders = orders
        super().__init__(
            ["--model-id", "toy/model", "--root", str(volume), *LIMITS, *more],
            environ={"STANDIN_ORDERS": str(orders), "PYTHONPATH": str(REPOSITORY), **environ},
            program=(str(REPOSITORY / "tests/faults/standin.py"),),
        )

    @contextmanager
    def ordered(self, seam: str, order: str) -> Iterator[None]:
        self.order(seam, order)
        yield
        (self.orders / seam).unlink(missing_ok=True)

    def order(self, seam: str, order: str) -> None:
        """At once for whoever comes next, in the place of what was ordered there before."""
        new = self.orders / f"{seam}.new"
        new.write_text(order)
        new.rename(self.orders / seam)

    @contextmanager
    def holding(self, seam: str) -> Iterator[Callable[[], object]]:
        """Whoever comes to the seam waits there until the end. Gives a function that returns when somebody does."""
        number = str(next(_numbers))
        new = self.orders / f"{seam}.new"
        with new.open("w") as file:
            file.write(f"hold {number}")
            file.flush()
            fcntl.flock(file, fcntl.LOCK_EX)
            new.rename(self.orders / seam)
            yield lambda: self.wait_for(message="held", seam=seam, number=number)
            found = self.orders / seam
            if found.exists() and found.read_text() == f"hold {number}":
                found.unlink()

    def state(self, request_id: str) -> str | None:
        state: str | None = self.client.get(f"/v1/requests/{request_id}").json().get("state")
        return state

    def counted(self, name: str) -> float:
        """A counter or gauge without labels."""
        families = text_string_to_metric_families(self.client.get("/metrics").text)
        [value] = [each.value for family in families for each in family.samples if each.name == name]
        return value

    def memory(self) -> int:
        """Resident bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        [line] = [line for line in status.splitlines() if line.startswith("VmRSS")]
        return int(line.split()[1]) * 1024

    def is_fine(self) -> bool:
        """Alive and ready, and says so."""
        return self.client.get("/livez").status_code == 200 and self.ready().status_code == 200

    def connect(self, head: str, body: bytes = b"", **options: int) -> socket.socket:
        """A connection over which this has been sent: lines of a head, and what follows it. `options`: of the socket."""
        caller = socket.socket()
        for name, value in options.items():
            caller.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
        caller.settimeout(START)
        caller.connect(("127.0.0.1", self.port))
        caller.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        return caller
