"""Puts the winners of tuning into a bundle that the runtime can open."""

from kernelforge.pack.winners import Sharing, Verification, Winner, choose, sharing, winner
from kernelforge.pack.writer import installed_toolchain, pack, require_place
from kernelforge_runtime.bundle import Toolchain

__all__ = [
    "Sharing",
    "Toolchain",
    "Verification",
    "Winner",
    "choose",
    "installed_toolchain",
    "pack",
    "require_place",
    "sharing",
    "winner",
]
