"""GPU kernels in Triton, which comes with torch for CUDA; without Triton, they are ``None``."""

from typing import Any

scale_and_leaky_relu: Any = None

try:
    import triton
    import triton.language as tl
except ImportError:
    pass
else:

    @triton.jit  # type: ignore[untyped-decorator]
    def scale_and_leaky_relu(x, y, scale, offset, count, slope, channels: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def,no-redef]
        """Store leaky_relu(x * scale + offset) in y, computed in float32, for contiguous (V, C) rows; y may be x."""
        place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
        inside = place < count
        channel = place % channels
        value = tl.load(x + place, mask=inside).to(tl.float32)
        value = value * tl.load(scale + channel, mask=inside) + tl.load(offset + channel, mask=inside)
        value = tl.where(value > 0, value, value * slope)
        tl.store(y + place, value.to(y.dtype.element_ty), mask=inside)
