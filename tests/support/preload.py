"""What the process that commands are forked from has in memory: imported once, never looked through again."""

from __future__ import annotations

import gc
from contextlib import suppress
from importlib import import_module

gc.disable()
# Of whatever is started here, with what it loads late; what is missing on a machine is passed over.
for _name in (
    *("ezxmc.pipeline.run", "ezxmc.pipeline.update", "ezxmc.bundle.tagging", "ezxmc.serve.app", "uvicorn"),
    *("sentence_transformers", "ezxmc.retrieval.encoder", "ezxmc.retrieval.sparse_head"),
    *("bm25s", "scipy.optimize", "scipy.stats", "sklearn.isotonic", "matplotlib.figure"),
):
    with suppress(ImportError):
        import_module(_name)
gc.freeze()
gc.enable()
