"""Devices, data and skip reasons that tests share; the whole run is validated where it can be."""

import logging
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
SWIFTSHADER = ROOT / ".setup" / "swiftshader" / "vk_swiftshader_icd.json"
LAYERS = Path("/usr/share/vulkan/explicit_layer.d/VkLayer_khronos_validation.json")
DEVICES = tuple(os.environ.get("KERNELFORGE_TEST_DEVICES", "llvmpipe,swiftshader").split(","))
"""Parts of device names; `make gpu` puts the GPU's here."""

# Before anything opens a device: both software devices are listed, and calls are validated.
if SWIFTSHADER.is_file() and "VK_DRIVER_FILES" not in os.environ:
    os.environ.setdefault("VK_ADD_DRIVER_FILES", str(SWIFTSHADER))
if LAYERS.is_file():
    os.environ.setdefault("KERNELFORGE_VALIDATION", "1")
os.environ.setdefault("KERNELFORGE_DEVICE", DEVICES[0])

from kernelforge_runtime.errors import DeviceError  # noqa: E402
from kernelforge_runtime.vk import open_device  # noqa: E402
from kernelforge_runtime.vk.device import VALIDATION_MESSAGES  # noqa: E402
from tests.families.tally import TALLY, table  # noqa: E402

PLACE = "KERNELFORGE_TEST_PLACE"
"""Where all processes of a run keep what each of them would else build anew."""

LONGEST = (
    "toolkit/test_cli_tune.py",
    "toolkit/test_cli_verbs.py",
    "toolkit/test_faults.py",
    "toolkit/test_sharing.py",
    "toolkit/test_honest_winner.py",
    "toolkit/test_repeated.py",
    "toolkit/test_untuned.py",
    "toolkit/test_recording.py",
    "toolkit/test_stale.py",
    "models/test_rwkv7a.py",
    "runtime/test_soak.py",
    "runtime/test_fuzz_readers.py",
)
"""Of few tests that take long: started first, or one process is at them when all others are done.

The others begin by how many tests they have, most first, which is how long they take as a rule.
"""


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # the first process, before it starts the others
        os.environ[PLACE] = tempfile.mkdtemp(prefix="kernelforge-test-")


def pytest_unconfigure(config):
    if not hasattr(config, "workerinput") and PLACE in os.environ:
        shutil.rmtree(os.environ.pop(PLACE), ignore_errors=True)


def group_of(nodeid):
    """Tests of one group stay in one process: those of a file, in conformance those of a precision.

    A file's tests share what is dear to make; all of conformance in one process would leave the
    others idle for minutes.
    """
    place, _, given = nodeid.partition("[")
    group = place.partition("::")[0]
    if Path(group).stem == "test_conformance" and given:
        group = "-".join([group, *given.rstrip("]").split("-")[:2]])
    return group


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """For `--dist loadgroup`: its own marks go into node ids, which pytest 9 keeps as they are."""
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group_of(nodeid)

        def _assign_work_unit(self, node):
            for file in LONGEST:
                if f"tests/{file}" in self.workqueue:
                    self.workqueue.move_to_end(f"tests/{file}", last=False)
                    break
            super()._assign_work_unit(node)

    return ByGroup(config, log)


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files")


@pytest.fixture
def update_golden(request):
    return request.config.getoption("--update-golden")


_open = {}


def opened(name):
    """The device of this name, opened once per test run; skips where it is not there."""
    if name not in _open:
        try:
            _open[name] = open_device(name)
        except DeviceError as error:
            pytest.skip(f"no device {name}: {error}")
    return _open[name]


@pytest.fixture(params=DEVICES)
def device(request):
    """Each software device in turn."""
    return opened(request.param)


@pytest.fixture
def llvmpipe():
    """Where one device will do: Mesa's software device, or the first that was asked for."""
    return opened(DEVICES[0])


@pytest.fixture
def shared():
    """The folder of real weights and golden vectors; skips where it is not there."""
    if not SHARED.is_dir():
        pytest.skip(
            "no ../shared/data beside the checkout: real weights and golden vectors are there"
        )
    return SHARED


@pytest.fixture(autouse=True)
def logs_as_they_were():
    """The command line, run in this process, takes over its packages' logs; others need them."""
    logs = [logging.getLogger(name) for name in ("kernelforge", "kernelforge_runtime")]
    kept = [(log.handlers, log.propagate, log.level) for log in logs]
    yield
    for log, (handlers, propagate, level) in zip(logs, kept, strict=True):
        log.handlers, log.propagate = handlers, propagate
        log.setLevel(level)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def pytest_sessionfinish(session):
    for device in _open.values():
        device.close()
    if hasattr(session.config, "workeroutput"):  # one of several processes: the first one tells
        session.config.workeroutput["validation"] = [str(m) for m in VALIDATION_MESSAGES]
        session.config.workeroutput["conformance"] = TALLY
        return
    if VALIDATION_MESSAGES:
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        reporter.write_line(f"validation layer: {len(VALIDATION_MESSAGES)} messages", red=True)
        for message in VALIDATION_MESSAGES[:10]:
            reporter.write_line(message)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """What the validation layer told one of several processes, and what conformance counted."""
    output = getattr(node, "workeroutput", {})
    VALIDATION_MESSAGES.extend(output.get("validation", []))
    TALLY.extend(output.get("conformance", []))


def pytest_terminal_summary(terminalreporter):
    if TALLY:
        terminalreporter.section("conformance: variants that passed every check")
        for line in table(TALLY):
            terminalreporter.write_line(line)
