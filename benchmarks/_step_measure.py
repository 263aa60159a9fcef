"""How `step_cost.py` measures: time in rounds, and peak memory."""

from __future__ import annotations

import ctypes
import gc
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

Times = dict[str, list[float]]
Report = dict[str, Any]

MIB = 2**20


class BenchmarkError(RuntimeError):
    """Something cannot be measured; the message says why, and the fix."""


def with_progress(names: Iterable[str], title: str) -> Iterator[str]:
    """The names one by one, shown on stderr behind the title."""
    with tqdm(list(names), leave=False) as bar:
        for name in bar:
            bar.set_description(f"{title}: {name}")
            yield name


# Time


def measure_rounds(calls: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device, title: str) -> Times:
    """Seconds of each call in each of `rounds` rounds, all calls in turn; one more round before does not count."""
    times: Times = {name: [] for name in calls}
    with tqdm(total=(rounds + 1) * len(calls), leave=False) as bar:
        for index in range(rounds + 1):
            for name, call in calls.items():
                bar.set_description(f"{title}, {f'round {index}' if index else 'warm-up'}: {name}")
                seconds = _seconds(call, device)
                if index:
                    times[name].append(seconds)
                bar.update()
    return times


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1000
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def ratios(times: Times, of: str, to: str) -> list[float]:
    """Time of `of` over that of `to`, both of the same round."""
    return [a / b for a, b in zip(times[of], times[to], strict=True)]


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


# Memory


def peak_memory(call: Callable[[], Any], device: torch.device) -> Report:
    """Peak memory while `call` runs, once without a warm-up: `extra_mib` above what was there before, `peak_mib` in
    all, and `counts`, what is counted.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        peak, counts = torch.cuda.max_memory_allocated(device), "PyTorch's tensors on the GPU"
    else:
        _trim_heap()
        if _reset_peak():
            before = _resident("VmRSS")
            call()
            peak, counts = _resident("VmHWM"), "resident memory of the process"
        else:
            before = _largest_so_far()
            call()
            peak, counts = _largest_so_far(), "resident memory of the process, above its largest before"
    return {"extra_mib": (peak - before) / MIB, "peak_mib": peak / MIB, "counts": counts}


def _trim_heap() -> None:
    """Give freed memory back: the call would otherwise live on it unseen."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # not glibc
        return


def _reset_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not permitted
        return False
    return True


def _resident(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    found = re.search(rf"^{key}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None, f"no {key} in /proc/self/status"
    return int(found[1]) * 1024


def _largest_so_far() -> int:
    try:
        import resource
    except ImportError:
        raise BenchmarkError("peak memory cannot be measured on this system; add --skip-memory") from None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
