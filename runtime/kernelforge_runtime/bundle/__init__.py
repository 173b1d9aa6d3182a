"""Bundles of tuned kernels: find one, check it, choose from it. `tuned/README.md` has the rules."""

from kernelforge_runtime.bundle.bundle import Bundle, open_bundle, read_manifest
from kernelforge_runtime.bundle.entry import Entry, Verified
from kernelforge_runtime.bundle.fingerprint import BundleMatch, Fingerprint, why_not
from kernelforge_runtime.bundle.locate import Located, locate, locate_generic
from kernelforge_runtime.bundle.manifest import Manifest, Toolchain
from kernelforge_runtime.bundle.select import KernelSet, Match, Selection, select

__all__ = [
    "Bundle",
    "BundleMatch",
    "Entry",
    "Fingerprint",
    "KernelSet",
    "Located",
    "Manifest",
    "Match",
    "Selection",
    "Toolchain",
    "Verified",
    "locate",
    "locate_generic",
    "open_bundle",
    "read_manifest",
    "select",
    "why_not",
]
