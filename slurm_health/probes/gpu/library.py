"""The process that NVML lives in: `python -m slurm_health.probes.gpu.library`.

It answers each line on its standard input with one line on its standard output, and ends at the end of its
input.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from typing import Any

from slurm_health.probes.gpu.board import Board, Row
from slurm_health.probes.gpu.worker import LIBRARY

PR_SET_PDEATHSIG = 1  # prctl(2)


class Library:
    """NVML, loaded and initialised once; again after it failed."""

    def __init__(self, file: str) -> None:
        import pynvml

        self.nvml: Any = pynvml
        self.file = file
        self.ready = False
        self.driver = ""
        self.boards: dict[int, Board] = {}  # by the address of NVML's handle
        self.known: dict[int, str] = {}  # index -> PCI address, for a GPU that no longer tells its own

    def ask(self) -> dict[str, Any]:
        """{"error": why NVML cannot be used, "", "readings": [[name, device, value, evidence, pid], ...]}"""
        nvml = self.nvml
        rows: list[Row] = []
        try:
            if not self.ready:
                if self.file and nvml.nvmlLib is None:
                    nvml.nvmlLib = ctypes.CDLL(self.file)
                nvml.nvmlInit()
                self.ready = True
            count = nvml.nvmlDeviceGetCount()
        except OSError as error:  # the named file cannot be loaded
            return {"error": str(error), "readings": []}
        except nvml.NVMLError as error:
            self._end()
            return {"error": str(error), "readings": []}
        with contextlib.suppress(nvml.NVMLError):
            self.driver = nvml.nvmlSystemGetDriverVersion()
            rows.append(("gpu.driver_version", "", self.driver, "", 0))
        unable = []
        for index in range(count):
            try:
                rows += self._gpu(index)
            except nvml.NVMLError as error:
                if error.value == nvml.NVML_ERROR_GPU_IS_LOST:
                    rows.append(("gpu.lost", self.known.get(index, ""), True, str(error), 0))
                elif error.value != nvml.NVML_ERROR_NO_PERMISSION:  # a container's GPUs are not ours to judge
                    unable.append(f"GPU {index}: {error}")
        if unable:
            self._end()
        return {"error": "; ".join(unable), "readings": rows}

    def _gpu(self, index: int) -> list[Row]:
        handle = self.nvml.nvmlDeviceGetHandleByIndex(index)
        place = ctypes.cast(handle, ctypes.c_void_p).value or 0
        board = self.boards.get(place)
        if board is None:
            board = self.boards[place] = Board(self.nvml, handle, self.driver)
        self.known[index] = board.device
        return [("gpu.index", board.device, index, "", 0), *board.read()]

    def _end(self) -> None:
        """Start anew with the next question: an initialised NVML never sees a driver that came back."""
        self.boards.clear()
        if self.ready:
            self.ready = False
            with contextlib.suppress(self.nvml.NVMLError):
                self.nvml.nvmlShutdown()


def main() -> None:
    """Answer questions until the end of input. SIGTERM keeps its default, so that it ends a blocked call."""
    parent = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if parent and os.getppid() != parent:  # it died before we asked to be told
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the daemon's to answer
    library = Library(os.environ.get(LIBRARY, ""))
    for line in sys.stdin:
        started = time.monotonic()
        answer = library.ask()
        answer["ask"] = int(line)
        answer["seconds"] = round(time.monotonic() - started, 6)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
