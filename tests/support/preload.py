"""What the process that commands are forked from has in memory: imported once, never looked through again."""

from __future__ import annotations

import atexit
import gc
import os
from contextlib import suppress
from importlib import import_module

gc.disable()
# Of whatever is started here, with what it loads late; what is missing on a machine is passed over.
for _name in (
    *("ezxmc.pipeline.run", "ezxmc.pipeline.update", "ezxmc.bundle.tagging", "ezxmc.serve.app", "uvicorn"),
    *("sentence_transformers", "ezxmc.retrieval.encoder", "ezxmc.retrieval.sparse_head"),
    *("bm25s", "scipy.optimize", "scipy.stats", "sklearn.isotonic", "matplotlib.figure"),
    *("datasets", "sklearn.svm", "sklearn.feature_extraction.text", "torch._dynamo"),
    *("hypothesis.strategies", "hypothesis.extra.numpy"),
):
    with suppress(ImportError):
        import_module(_name)
gc.freeze()
gc.enable()
# What was imported has no say in how this process ends: some libraries count what they leak.
atexit.register(os._exit, 0)
