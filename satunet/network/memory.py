"""Memory for large maps that is used again, map after map and patch after patch.

The system's own way gives every large tensor fresh pages and takes them back with it; a network then waits for a page
fault every 4 KB of every map, which takes longer than normalising the map.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

_ALIGNMENT = 64
"""Bytes; a cache line, and the widest vector of a CPU."""


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
    """Tensors that give their memory back here when nobody holds them any more.

    It grows when nothing free is large enough, and never shrinks: after a patch or two it is as large as the most that
    was in use at once. It goes when it and the last of its tensors are gone.
    """

    def __init__(self) -> None:
        self._segments: list[Tensor] = []
        self._free: list[_Span] = []
        self._returned: deque[_Span] = deque()  # appended to from wherever a tensor ends, in the middle of anything
        self._lock = threading.Lock()

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """A contiguous CPU tensor; its content is whatever was left there.

        Raises:
            RuntimeError: Memory is short (torch's own error).
        """
        count = math.prod(shape)
        size = max(1, -(-count * dtype.itemsize // _ALIGNMENT)) * _ALIGNMENT
        with self._lock:
            span = self._take(size)
        with torch.inference_mode(False):  # to be written to in any mode
            # torch holds this view of numpy's for as long as any tensor shares the memory, and no longer.
            memory = self._segments[span.segment][span.start : span.end].numpy()
            weakref.finalize(memory, self._returned.append, span).atexit = False
            return torch.from_numpy(memory).view(dtype)[:count].view(shape)

    @property
    def size(self) -> int:
        """Bytes, in use or not."""
        return sum(segment.numel() for segment in self._segments)

    def _take(self, size: int) -> _Span:
        self._join_returned()
        fitting = [span for span in self._free if span.size >= size]
        if not fitting:
            self._segments.append(torch.empty(size, dtype=torch.uint8))
            return _Span(len(self._segments) - 1, 0, size)
        best = min(fitting, key=lambda span: (span.size, span))
        self._free.remove(best)
        if best.size > size:
            self._free.append(_Span(best.segment, best.start + size, best.end))
        return _Span(best.segment, best.start, best.start + size)

    def _join_returned(self) -> None:
        """Free spans become one with the free spans beside them."""
        while self._returned:
            self._free.append(self._returned.popleft())
        joined: list[_Span] = []
        for span in sorted(self._free):
            if joined and joined[-1].segment == span.segment and joined[-1].end == span.start:
                span = _Span(span.segment, joined.pop().start, span.end)
            joined.append(span)
        self._free = joined
