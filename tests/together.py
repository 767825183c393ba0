# SPDX-License-Identifier: MIT
"""Runs the tests of a class at the same time, where they wait more than they work.

A module that has such classes says `load_tests = together("ThisClass", "ThatClass")`. They may not
patch what others look at, such as the environment; they keep to servers of their own.
"""
import unittest
from concurrent.futures import ThreadPoolExecutor

AT_A_TIME = 8
REPORTS = ("addSuccess", "addError", "addFailure", "addSkip", "addExpectedFailure",
           "addUnexpectedSuccess", "addSubTest")


class Record(unittest.TestResult):
    """Notes what became of one test, to be reported in its turn."""

    def __init__(self):
        super().__init__()
        self.calls = []
        for name in REPORTS:
            setattr(self, name, lambda *args, name=name: self.calls.append((name, args)))


class Together(unittest.TestSuite):
    def run(self, result, debug=False):
        tests = list(self)
        records = [Record() for _ in tests]
        with ThreadPoolExecutor(AT_A_TIME) as threads:
            list(threads.map(lambda test, record: test.run(record), tests, records))
        for test, record in zip(tests, records):
            result.startTest(test)
            for name, args in record.calls:
                getattr(result, name)(*args)
            result.stopTest(test)
        return result


def together(*names):
    """Return what unittest calls to load a module whose classes `names` run so."""
    def load_tests(loader, tests, pattern):
        suite = unittest.TestSuite()
        for group in tests:
            classes = {type(test).__name__ for test in group}
            suite.addTest(Together(group) if classes & set(names) else group)
        return suite
    return load_tests
