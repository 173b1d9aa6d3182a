"""What the records of a bench say of a loaded model and of a step of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kernelforge.cli.bench_operations import operation_facts
from kernelforge.cli.bench_peers import PeerSubject

if TYPE_CHECKING:
    from kernelforge.cli.model_bench import Subject
    from kernelforge.measure.baseline import Ceilings
    from kernelforge_runtime.vk import Device


def device_facts(device: Device, subject: Subject, ceilings: Ceilings | None) -> dict[str, Any]:
    """Of a loaded model: the device, the bundle, and what a decoded token needs."""
    from kernelforge.cli.model_bench import describe_kernels, touched_bytes
    from kernelforge_runtime.models import Model

    model, info = subject.model, device.info
    assert isinstance(model, Model)
    return {
        "device": info.slug,
        "device_name": info.name,
        "device_type": info.device_type,
        "driver": f"{info.driver_name} {info.driver_info}".strip(),
        "bundle": subject.name,
        "bundle_sha256": model.kernels.bundles[0].sha256,
        "kernels": describe_kernels(model),
        "touched_bytes": touched_bytes(model),
        "dispatches": len(model.calls(1)),
        "weight_bytes": model.weight_bytes,
        "read_gbps": ceilings.read_gbps if ceilings else float("nan"),
    }


def step_facts(subject: Subject | PeerSubject, test: str, tokens: int) -> dict[str, Any]:
    """What a step of this test takes; nothing of who runs without dispatches of ours."""
    from kernelforge_runtime.models import Model

    model = getattr(subject, "model", None)
    if not isinstance(model, Model) or isinstance(subject, PeerSubject):
        return {}
    count = model.dispatches(1 if test == "tg" else tokens)
    facts = {"step_dispatches": count.total, "layer_dispatches": round(count.per_block, 3)}
    return facts | (operation_facts(model, subject.state) if test == "tg" else {})
