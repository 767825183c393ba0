# SPDX-License-Identifier: MIT
"""chat_many on a real Dask cluster: a scheduler and two worker processes on this machine.

Wants distributed, and is skipped without it; where the environment says CI=true that is a
failure.
"""
import os
import threading
import unittest
import warnings

from .. import synthetic_client as sc
from ..server import Server, completion

try:
    import distributed
except ImportError:
    distributed = None

WORKERS = 2


class Cluster(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if distributed is None:
            message = "not installed: distributed (.ci/run installs it)"
            if os.environ.get("CI") == "true":
                raise AssertionError(message)
            raise unittest.SkipTest(message)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own
            cls.cluster = distributed.LocalCluster(
                n_workers=WORKERS, threads_per_worker=1, dashboard_address=None, host="127.0.0.1")
            cls.addClassCleanup(cls.cluster.close)
            cls.dask = distributed.Client(cls.cluster)
            cls.addClassCleanup(cls.dask.close)

    def test_shared_out(self):
        """Both workers make requests at the same time, each over one connection that it keeps."""
        together = threading.Barrier(WORKERS)
        ports = {}

        def handler(conn):
            ports.setdefault(conn.sock.getpeername()[1], []).append(conn.json)
            if len(ports[conn.sock.getpeername()[1]]) == 1:
                together.wait(20)  # no worker gets on before the other has sent a request too
            conn.send_json(completion(conn.json["messages"][0]["content"]))

        requests = [str(number) for number in range(40)]
        with Server(handler) as server:
            results = list(server.client().chat_many(
                requests, workers=WORKERS, executor=self.dask.get_executor(), seed=7))
        self.assertEqual([result.error for result in results], [None] * len(requests))
        self.assertEqual([result.completion.text for result in results], requests)
        self.assertEqual(server.connections, WORKERS)
        self.assertEqual({body["seed"] for bodies in ports.values() for body in bodies}, {7})
        self.assertGreater(min(map(len, ports.values())), 1)
        self.assertEqual(sum(map(len, ports.values())), len(requests))

    def test_equal_requests(self):
        """Equal requests are made each on its own, though Dask keeps results of equal tasks."""
        numbers = iter(range(100))

        def handler(conn):
            conn.send_json(completion(str(next(numbers))))

        with Server(handler) as server:
            results = list(server.client().chat_many(
                ["same"] * 20, workers=WORKERS, executor=self.dask.get_executor()))
        self.assertEqual({result.completion.text for result in results},
                         {str(number) for number in range(20)})
        self.assertEqual(len(server.requests), 20)

    def test_failures(self):
        """Refusals are asked again, and errors come back whole from the worker that met them."""
        def handler(conn):
            if conn.json["messages"][0]["content"] == "bad":
                return conn.send_json({"error": "no"}, 400, {"x-request-id": "r-1"})
            if len(server.requests) % 3 == 0:
                return conn.send_json({"error": "wait"}, 429, {"retry-after-ms": "1"})
            return conn.send_json(completion())

        with Server(handler) as server:
            executor = self.dask.get_executor()
            results = list(server.client().chat_many(
                ["good", "bad", 5] * 4, workers=WORKERS, executor=executor))
        self.assertEqual({result.completion.text for result in results[::3]}, {"hello"})
        for result in results[1::3]:
            self.assertIsInstance(result.error, sc.BadRequestError)
            self.assertEqual((result.error.message, result.error.request_id), ("no", "r-1"))
        self.assertEqual({type(result.error) for result in results[2::3]}, {TypeError})
        self.assertEqual(executor.submit(int, "7").result(), 7)


if __name__ == "__main__":
    unittest.main()
