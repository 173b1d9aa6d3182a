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
from tests.scheduling import by_group  # noqa: E402

PLACE = "KERNELFORGE_TEST_PLACE"
"""Where all processes of a run keep what each of them would else build anew."""


def pytest_configure(config):
    if not hasattr(config, "workerinput"):  # the first process, before it starts the others
        os.environ[PLACE] = tempfile.mkdtemp(prefix="kernelforge-test-")


def pytest_unconfigure(config):
    if not hasattr(config, "workerinput") and PLACE in os.environ:
        shutil.rmtree(os.environ.pop(PLACE), ignore_errors=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """For `--dist loadgroup`: its own marks go into node ids, which pytest 9 keeps as they are."""
    return by_group(config, log) if config.getvalue("dist") == "loadgroup" else None


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
