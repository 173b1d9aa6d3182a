"""Other engines, run beside ours on the same weights and tokens: what `bench --peer` compares with.

Each peer is a package that the user has installed. It runs in a process of its own, by a worker
that needs nothing of KernelForge, so that it may live in another Python environment.
"""

from kernelforge.peers.engines import ENGINES, PeerModel, RunningPeer, open_peer
from kernelforge.peers.limits import measure_matmul
from kernelforge.peers.process import PeerProcess

__all__ = [
    "ENGINES",
    "PeerModel",
    "PeerProcess",
    "RunningPeer",
    "measure_matmul",
    "open_peer",
]
