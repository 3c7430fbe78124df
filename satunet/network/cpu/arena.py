"""A memory pool for large maps, reused from map to map and from patch to patch.

The system's allocator gives every large tensor fresh pages and takes them back afterwards. A network then spends one
page fault per 4 KB of every map, which takes longer than normalising the map.
"""

from __future__ import annotations

import itertools
import math
import threading
import weakref
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

_ALIGNMENT = 64
"""Alignment in bytes: a cache line, and the widest vector of a CPU."""


@dataclass(frozen=True, order=True)
class _Span:
    """Bytes ``start`` to ``end`` of a segment."""

    segment: int
    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


class Arena:
    """A pool of tensors whose memory is returned to it when they are garbage-collected.

    The pool grows when no free span is large enough; before that, it returns completely free segments to the system.
    With patches of one size, it does not grow after the first patch, and is a tenth to a third larger than the peak
    use. Its memory is freed when the pool and the last of its tensors are gone. A copy of a pool starts empty.
    """

    def __init__(self) -> None:
        self._segments: dict[int, Tensor] = {}
        self._numbers = itertools.count()
        self._free: list[_Span] = []
        self._returned: deque[_Span] = deque()  # finalizers append to it, at any point of any thread
        self._lock = threading.Lock()

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """A contiguous CPU tensor with arbitrary content.

        Raises:
            RuntimeError: There is not enough memory (torch's own error).
        """
        count = math.prod(shape)
        size = max(1, -(-count * dtype.itemsize // _ALIGNMENT)) * _ALIGNMENT
        with self._lock:
            span = self._take(size)
        with torch.inference_mode(False):  # so that it can be written to in any mode
            # torch keeps this numpy view alive exactly as long as any tensor shares the memory.
            memory = self._segments[span.segment][span.start : span.end].numpy()
            weakref.finalize(memory, self._returned.append, span).atexit = False
            return torch.from_numpy(memory).view(dtype)[:count].view(shape)

    def __reduce__(self) -> tuple[type[Arena], tuple[()]]:
        return Arena, ()

    @property
    def size(self) -> int:
        """Size in bytes, used and free."""
        return sum(segment.numel() for segment in self._segments.values())

    def _take(self, size: int) -> _Span:
        self._join_returned()
        fitting = [span for span in self._free if span.size >= size]
        if not fitting:
            self._drop_idle()
            number = next(self._numbers)
            self._segments[number] = torch.empty(size, dtype=torch.uint8, device="cpu")
            return _Span(number, 0, size)
        best = min(fitting, key=lambda span: (span.size, span))
        self._free.remove(best)
        if best.size > size:
            self._free.append(_Span(best.segment, best.start + size, best.end))
        return _Span(best.segment, best.start, best.start + size)

    def _drop_idle(self) -> None:
        """Return the unused segments, all of which are too small, to the system."""
        idle = {span.segment for span in self._free if span.size == self._segments[span.segment].numel()}
        self._free = [span for span in self._free if span.segment not in idle]
        for number in idle:
            del self._segments[number]

    def _join_returned(self) -> None:
        """Merge adjacent free spans."""
        while self._returned:
            self._free.append(self._returned.popleft())
        joined: list[_Span] = []
        for span in sorted(self._free):
            if joined and joined[-1].segment == span.segment and joined[-1].end == span.start:
                span = _Span(span.segment, joined.pop().start, span.end)
            joined.append(span)
        self._free = joined
