"""Which tests run in one process, in which order, and what becomes of those of one that dies."""

from __future__ import annotations

from pathlib import Path

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


def by_group(config, log):
    """A scheduler for pytest-xdist."""
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

        def _reschedule(self, node):
            super()._reschedule(node)
            # A process begins with its last test once it knows whether there is another one.
            while not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
                super()._reschedule(node)

        def remove_node(self, node):
            """The test at which the process died, if it did: a failure.

            Others get what it left, without that test, which they would die of too, and without
            what is done: for a group of which nothing is left a process would wait for ever.
            """
            work = self.assigned_work.pop(node)
            left = [
                (group, test) for group in work for test, done in work[group].items() if not done
            ]
            for group, test in left[1:]:
                self.workqueue.setdefault(group, {})[test] = False
            for other in self.assigned_work:
                self._reschedule(other)
            return left[0][1] if left else None

    return ByGroup(config, log)
