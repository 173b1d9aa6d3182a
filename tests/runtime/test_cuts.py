"""Work per submit stays below what a watchdog allows, by what was measured."""

import numpy as np
import pytest

from kernelforge_runtime.plan import Dispatch, Plan, plan
from kernelforge_runtime.plan.cuts import FIRST_DISPATCHES, LIMIT_S, Cuts, submit_limit
from tests.runtime.kernels import plus_one


def test_nothing_watches_a_cpu_and_everything_else_is_bounded():
    assert submit_limit("cpu") is None
    assert {submit_limit(t) for t in ("discrete", "integrated", "virtual", "other")} == {LIMIT_S}
    assert Cuts(100, None).ends == [100]


def test_the_first_run_goes_in_small_parts_and_then_together_up_to_half_the_limit():
    cuts = Cuts(3 * FIRST_DISPATCHES + 1, 1.0)
    assert cuts.ends == [8, 16, 24, 25]
    assert cuts.learn([0.1, 0.3, 0.4, 0.05])
    assert cuts.ends == [16, 25]
    assert not cuts.learn([0.4, 0.45])


def test_a_part_that_is_too_long_is_halved_until_it_is_one_dispatch():
    cuts = Cuts(8, 1.0)
    assert cuts.learn([8.0]) and cuts.ends == [4, 8]
    assert cuts.learn([4.0, 0.5]) and cuts.ends == [2, 4, 8]
    assert cuts.learn([2.0, 0.1, 0.5]) and cuts.ends == [1, 2, 4, 8]
    assert not cuts.learn([2.0, 0.1, 0.1, 0.5])  # one dispatch cannot be cut


@pytest.mark.vulkan
@pytest.mark.glslang
@pytest.mark.parametrize("limit", [1e-9, 1e3], ids=["each alone", "all together"])
def test_a_plan_gives_the_same_in_any_parts_and_records_them_once_they_are_known(
    device, monkeypatch, limit
):
    monkeypatch.setattr(plan, "submit_limit", lambda kind: limit)
    x, y = device.buffer(256), device.buffer(256)
    calls = [Dispatch(plus_one(), {"N": 64}, {"x": a, "y": b}) for a, b in [(x, y), (y, x)] * 10]
    before = device.live_objects.get("command buffer", 0)
    with Plan(device, calls) as made:
        assert made.submits == 3
        for _ in range(6):
            x.fill(0)
            made.run()
            assert (x.download(np.float32) == 20).all()
        assert made.submits == (20 if limit < 1 else 1)
        assert device.live_objects["command buffer"] - before == made.submits
    x.close()
    y.close()
