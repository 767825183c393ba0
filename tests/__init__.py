# SPDX-License-Identifier: MIT
"""Tests: standard library only. Run them all with `python3 -m unittest`.

The package under test is imported here, once; test modules write
`from . import synthetic_client as sc`, so one line points them all at another copy.
"""

import os

# Nothing of the machine's settings reaches a test; a test that wants a proxy sets it itself.
for _name in list(os.environ):
    if _name.lower().endswith("_proxy") or _name.startswith("SYNTHETIC_"):
        del os.environ[_name]
os.environ["no_proxy"] = "*"
# Stands in for the system's certificates: to read those takes 40 ms for each of many contexts.
os.environ["SSL_CERT_FILE"] = os.path.join(
    os.path.dirname(os.path.abspath(__file__)), "data", "other-ca.pem")

import synthetic_client  # noqa: E402

__all__ = ["synthetic_client"]
