"""What the engine wants of its device beside forwards: that it does not run far behind, and that it gives memory back."""

from __future__ import annotations

import torch


class Device:
    """CUDA works off launches later than they are made; a CPU has nothing to wait for."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._under_way: torch.cuda.Event | None = None

    def pace(self) -> None:
        """Waits for what was launched before the last call, not for what has been launched since: the device always has
        something to do, and yet a cancellation or a measured second is at most one launch late."""
        if not self._cuda:
            return
        now = torch.cuda.Event()  # type: ignore[no-untyped-call]
        now.record()
        if self._under_way:
            self._under_way.synchronize()
        self._under_way = now

    def finish(self) -> None:
        """Waits for everything."""
        if self._cuda:
            torch.cuda.synchronize()

    def release_memory(self) -> None:
        """That no tensor holds."""
        if self._cuda:
            torch.cuda.empty_cache()
