"""Text in, token choice out: vocabularies, streaming text, sampling."""

from kernelforge_runtime.text.loading import load_tokenizer
from kernelforge_runtime.text.sampler import Sampler, Sampling
from kernelforge_runtime.text.stop import StopStrings
from kernelforge_runtime.text.stream import StreamDecoder
from kernelforge_runtime.text.tokenizer import Tokenizer

__all__ = ["Sampler", "Sampling", "StopStrings", "StreamDecoder", "Tokenizer", "load_tokenizer"]
