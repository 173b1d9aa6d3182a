"""Random models of RWKV-4, 5.0, 5.1, 5.2 and 6, of any shape."""

import numpy as np
from safetensors.numpy import save_file

OLDER = ("rwkv4", "rwkv5.0", "rwkv5.1", "rwkv5.2", "rwkv6")


def random_older(
    target,
    version,
    layers=2,
    width=128,
    heads=2,
    ffn=None,
    vocab=96,
    seed=0,
    residual=0.3,
    change=None,
):
    """Writes a random model.

    Args:
        target: path of the safetensors file.
        version: one of OLDER.
        layers: L.
        width: C.
        heads: H; RWKV-4 has none.
        ffn: F; that of released models where None.
        vocab: V.
        seed: of the weights.
        residual: about how much each block adds to the residual stream.
        change: gets the weights and may spoil them first.
    """
    make = _Maker(np.random.default_rng(seed), width)
    if ffn is None:
        ffn = 4 * width if version == "rwkv4" else 7 * width // 2 // 32 * 32
    weights = {
        "emb.weight": make.normal(vocab, width, scale=0.5),
        **make.norm("blocks.0.ln0"),
        **make.norm("ln_out"),
        "head.weight": make.normal(vocab, width, scale=2 / width**0.5),
    }
    for i in range(layers):
        block = {
            **make.norm("ln1"),
            **make.norm("ln2"),
            **make.squares("att.receptance", "att.key", "att.value", "att.output"),
            **_time_mix(make, version, heads),
            **make.squares("ffn.receptance"),
            "ffn.key.weight": make.normal(ffn, width, scale=1 / width**0.5),
            "ffn.value.weight": make.normal(width, ffn, scale=residual / ffn**0.5),
        }
        mix = "time_maa" if version == "rwkv6" else "time_mix"
        block |= {f"ffn.{mix}_{letter}": make.share() for letter in "kr"}
        weights |= {f"blocks.{i}.{name}": values for name, values in block.items()}
    if change is not None:
        change(weights)
    save_file(weights, str(target))
    return target


def _time_mix(make, version, heads):
    """What only this version's time mix has."""
    width = make.width
    if version == "rwkv4":
        mixes = {f"att.time_mix_{letter}": make.share() for letter in "kvr"}
        decay = make.between(-4, 1, width)
        return {**mixes, "att.time_decay": decay, "att.time_first": make.normal(width)}
    size = width // heads
    found = make.norm("att.ln_x")
    if version == "rwkv6":
        found |= {f"att.time_maa_{letter}": make.share() for letter in "xwkvrg"}
        found["att.time_maa_w1"] = make.normal(width, 5 * 32, scale=0.5 / width**0.5)
        found["att.time_maa_w2"] = make.normal(5, 32, width, scale=0.3 / 32**0.5)
        found["att.time_decay"] = make.between(-5, 1, 1, 1, width)
        found["att.time_decay_w1"] = make.normal(width, 64, scale=0.5 / width**0.5)
        found["att.time_decay_w2"] = make.normal(64, width, scale=0.5 / 64**0.5)
        found["att.time_faaaa"] = make.normal(heads, size, scale=0.5)
        return found | make.squares("att.gate")
    found |= {f"att.time_mix_{letter}": make.share() for letter in "kvr"}
    if version != "rwkv5.0":
        found["att.time_mix_g"] = make.share()
        found |= make.squares("att.gate")
    if version == "rwkv5.2":
        found["att.time_decay"] = make.between(-5, 1, heads, size)
        found["att.time_faaaa"] = make.normal(heads, size, scale=0.5)
    else:
        found["att.time_decay"] = make.between(-5, 1, heads)
        found["att.time_first"] = make.normal(heads, scale=0.5)
    return found


class _Maker:
    """Random tensors."""

    def __init__(self, rng, width):
        self.rng, self.width = rng, width

    def normal(self, *shape, scale=1.0):
        return (self.rng.standard_normal(shape) * scale).astype(np.float32)

    def between(self, low, high, *shape):
        return self.rng.uniform(low, high, shape).astype(np.float32)

    def share(self):
        return self.between(0, 1, 1, 1, self.width)

    def norm(self, name):
        return {
            f"{name}.weight": 1 + self.normal(self.width, scale=0.1),
            f"{name}.bias": self.normal(self.width, scale=0.1),
        }

    def squares(self, *names):
        scale = 0.7 / self.width**0.5
        return {f"{n}.weight": self.normal(self.width, self.width, scale=scale) for n in names}
