"""How RWKV-4 to 6 keep a float16 residual stream from overflowing.

Their residual grows from block to block beyond 65504. A layer norm does not see a common factor, so
the stream may be halved after every sixth block, if what later blocks add to it is as much smaller:
their output matrices are divided by 2^(block / 6) at load. In float32 nothing is rescaled.
"""

from __future__ import annotations

from kernelforge_runtime.dtypes import F16
from kernelforge_runtime.ops import OpSet
from kernelforge_runtime.ops.vocabulary import RESCALE_EVERY


def output_scale(ops: OpSet, block: int) -> float:
    """What the matrices that add to the residual stream are multiplied by."""
    return float(0.5 ** (block // RESCALE_EVERY)) if ops.activations == F16 else 1.0


def stream_scale(ops: OpSet, block: int) -> float:
    """What the residual stream before this block is multiplied by to be what it is in float32."""
    return 1.0 / output_scale(ops, block)


def halves(ops: OpSet, block: int) -> bool:
    """Whether the residual stream is halved after this block."""
    return ops.activations == F16 and (block + 1) % RESCALE_EVERY == 0
