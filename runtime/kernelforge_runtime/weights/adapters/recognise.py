"""What kind of adapter a file is, by its tensors' names, and what it changes in a model.

| kind | tensors, X.weight being the model's | alpha |
|---|---|---|
| LoRA of RWKV-PEFT | X.lora_A [rank, k], X.lora_B [rows, rank] | asked for |
| LoRA of web-rwkv | X.lora.0 [k, rank], X.lora.1 [rank, rows] | asked for |
| PiSSA | the first, and X.init_lora_A, X.init_lora_B here or in a file given beside it | none |
| DiSHA, Bone | X.disha or X.bone [r, rows] or [k / r, r, r] | none |

Names may begin with `model.`. What else a file holds must be named as in the model and is taken
whole (`whole`); `time_state`, a tuned initial state, need not be in the model.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from kernelforge_runtime.errors import ModelError
from kernelforge_runtime.weights.adapters.asked import Adapter
from kernelforge_runtime.weights.adapters.change import Change, Held
from kernelforge_runtime.weights.adapters.disha import disha
from kernelforge_runtime.weights.adapters.low_rank import low_rank
from kernelforge_runtime.weights.adapters.whole import whole
from kernelforge_runtime.weights.checkpoint import Checkpoint

log = logging.getLogger(__name__)
_PART: Final = re.compile(
    r"(?:base_model\.)?(?:model\.)*(?P<stem>.+?)\."
    r"(?P<part>init_lora_A|init_lora_B|lora_A|lora_B|lora\.0|lora\.1|disha|bone)(?:\.weight)?"
)
_PAIRS: Final = {"lora_A": "lora_B", "lora.0": "lora.1", "init_lora_A": "init_lora_B"}
_DISHA: Final = ("disha", "bone")
_KINDS: Final = (
    "LoRA (lora_A and lora_B, or lora.0 and lora.1), PiSSA (init_lora_A and init_lora_B beside "
    "them) and DiSHA (disha)"
)
_STATE: Final = ".att.time_state"
_TRANSPOSED: Final = re.compile(r".*\.(time_(mix|maa|decay)_w[12]|[wavg][12]|time_state)")
"""Of web-rwkv's files, which hold these with their last two dimensions the other way round."""


@dataclass
class Parts:
    """An adapter file by what its tensors are for.

    Attributes:
        adapter: how it is asked for.
        file: the file.
        factors: by the stem X, then by the part, e.g. lora_A.
        others: names of the rest.
    """

    adapter: Adapter
    file: Checkpoint
    factors: dict[str, dict[str, Held]] = field(default_factory=dict)
    others: dict[str, Held] = field(default_factory=dict)

    @property
    def is_web(self) -> bool:
        """Whether web-rwkv's converter wrote it."""
        return any("lora.0" in found for found in self.factors.values())

    @property
    def is_initial(self) -> bool:
        """Whether it holds nothing but what the factors of PiSSA began as."""
        found = {part for parts in self.factors.values() for part in parts}
        return bool(found) and found <= {"init_lora_A", "init_lora_B"} and not self.others


def read_parts(adapter: Adapter, file: Checkpoint) -> Parts:
    """Sorts a file's tensors.

    Raises:
        ModelError: a factor is without the other, or there is no factor at all.
    """
    parts = Parts(adapter, file)
    for name in file:
        found = _PART.fullmatch(name)
        if found is None:
            bare = re.sub(r"^(base_model\.)?(model\.)*", "", name)
            parts.others[bare] = Held(file, name)
            continue
        factors = parts.factors.setdefault(found["stem"], {})
        if found["part"] in factors:
            other = factors[found["part"]].name
            raise ModelError(f"adapter {file.path}: {other} and {name} are for one tensor: damaged")
        factors[found["part"]] = Held(file, name, transposed=found["part"].startswith("lora."))
    if not parts.factors:
        states = all(name.endswith(_STATE) for name in parts.others)
        hint = "it is a tuned state: load it as one" if states else f"known are {_KINDS}"
        raise ModelError(
            f"adapter {file.path}: of no known kind; it holds {next(iter(file))} and {len(file)} "
            f"tensors in all; {hint}"
        )
    for stem, factors in parts.factors.items():
        for first, second in _PAIRS.items():
            if (first in factors) != (second in factors):
                have, lacks = (first, second) if first in factors else (second, first)
                raise ModelError(
                    f"adapter {file.path}: has {stem}.{have} without {stem}.{lacks}: damaged"
                )
    return parts


def pair_pissa(files: Sequence[Parts]) -> list[Parts]:
    """Puts each file of initial factors to the trained ones it belongs to: its neighbour.

    Raises:
        ModelError: there is none.
    """
    used: set[int] = set()
    for at, initial in enumerate(files):
        if not initial.is_initial:
            continue
        for other in (at + 1, at - 1):
            if not 0 <= other < len(files) or other in used or files[other].is_initial:
                continue
            if initial.factors.keys() <= files[other].factors.keys():
                used.add(other)
                if initial.adapter.pattern not in (None, files[other].adapter.pattern):
                    raise ModelError(
                        f"adapter {initial.file.path}: an expression of its own would take "
                        f"away what is not added: give it to {files[other].file.path.name} alone"
                    )
                for stem, held in initial.factors.items():
                    files[other].factors[stem].update(held)
                break
        else:
            raise ModelError(
                f"adapter {initial.file.path}: holds only what the factors of PiSSA began as: give "
                "the file of trained ones right behind it"
            )
    return [parts for parts in files if not parts.is_initial]


def changes(parts: Parts, model: Checkpoint) -> tuple[dict[str, list[Change]], dict[str, Held]]:
    """(what changes in which tensor of the model, tuned states to add to it).

    Raises:
        ModelError: it is of another model, alpha is missing, or nothing is wanted of it.
    """
    adapter, made = parts.adapter, dict[str, list[Change]]()
    targets = {stem: _target(parts, stem, model) for stem in parts.factors}
    wanted = {stem: name for stem, name in targets.items() if adapter.wants(name)}
    for stem, name in wanted.items():
        made[name] = _of_factors(parts, parts.factors[stem], name, model.shape(name))
    added: dict[str, Held] = {}
    for name, held in parts.others.items():
        target, values = _official(name, held, model) if parts.is_web else (name, held)
        if target not in model and not target.endswith(_STATE):
            raise ModelError(
                f"adapter {parts.file.path}: {held.name} is no tensor of {model.path}, and of no "
                f"known kind: known are {_KINDS}"
            )
        if not adapter.wants(target):
            continue
        if target not in model:
            added[target] = values
            continue
        blend = _alpha(parts, target) if parts.is_web else None
        made.setdefault(target, []).append(whole(values, target, model.shape(target), blend))
    if not made and not added:
        raise ModelError(
            f"adapter {parts.file.path}: no tensor matched {adapter.pattern!r}; it has some for "
            f"{len(targets)}, such as {next(iter(targets.values()))}"
        )
    if adapter.alpha is not None and not parts.is_web:
        plain = all("lora_A" not in f or "init_lora_A" in f for f in parts.factors.values())
        if plain:
            log.warning("adapter %s: PiSSA and DiSHA have no alpha, it is not used", adapter.path)
    return made, added


def _of_factors(
    parts: Parts, held: dict[str, Held], target: str, shape: tuple[int, ...]
) -> list[Change]:
    """What a stem's tensors do, in the order of the table above."""
    made: list[Change] = []
    if "init_lora_A" in held:
        if "lora_A" not in held:
            raise ModelError(
                f"adapter {parts.file.path}: {held['init_lora_A'].name} has no trained lora_A "
                "beside it"
            )
        initial = low_rank(held["init_lora_A"], held["init_lora_B"], target, shape, None)
        made.append(replace(initial, scale=-1.0))
        made.append(low_rank(held["lora_A"], held["lora_B"], target, shape, None))
    elif "lora_A" in held:
        alpha = _alpha(parts, target)
        made.append(low_rank(held["lora_A"], held["lora_B"], target, shape, alpha))
    if "lora.0" in held:
        alpha = _alpha(parts, target)
        made.append(low_rank(held["lora.0"], held["lora.1"], target, shape, alpha))
    made += [disha(held[part], target, shape) for part in _DISHA if part in held]
    return made


def _alpha(parts: Parts, target: str) -> float:
    alpha = parts.adapter.alpha
    if alpha is None:
        raise ModelError(
            f"adapter {parts.file.path}: alpha is missing: the file is LoRA, for {target} and "
            "others, and does not say it; give FILE:ALPHA as it was trained, e.g. "
            f"{parts.file.path.name}:32 (PiSSA, without one, needs its initial factors too)"
        )
    return alpha


def _target(parts: Parts, stem: str, model: Checkpoint) -> str:
    """The model's tensor that factors are for."""
    for name in (f"{stem}.weight", stem):
        if name in model:
            return name
    raise ModelError(
        f"adapter {parts.file.path}: changes {stem}.weight, which {model.path} does not have: it "
        "is of another model"
    )


def _official(name: str, held: Held, model: Checkpoint) -> tuple[str, Held]:
    """The model's name of a tensor of web-rwkv's, and the tensor as the model has it."""
    official = name
    if name not in model:
        for theirs, ours in (("time_first", "time_faaaa"), ("time_mix", "time_maa")):
            if (renamed := name.replace(theirs, ours)) in model:
                official = renamed
    turned = _TRANSPOSED.fullmatch(name) is not None
    return official, replace(held, transposed=True) if turned else held
