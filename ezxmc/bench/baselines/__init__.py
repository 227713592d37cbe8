"""The methods `ezxmc bench methods` compares, each a function of a task and a seed."""

from ezxmc.bench.baselines.dense import STUDENT, STUDENT_TITLES, TEACHER, UNTRAINED
from ezxmc.bench.baselines.lexical import BM25, TFIDF_CHAR, TFIDF_WORD
from ezxmc.bench.baselines.lmtx import LMTX, LMTX4, LMTX_SMALL
from ezxmc.bench.baselines.maclr import MACLR
from ezxmc.bench.baselines.rts import RTS
from ezxmc.bench.baselines.supervised import SUPERVISED
from ezxmc.bench.baselines.task import DEPTH, Method, Ranking, Task

METHODS: dict[str, Method] = {
    "untrained": UNTRAINED,
    "tfidf-word": TFIDF_WORD,
    "tfidf-char": TFIDF_CHAR,
    "bm25": BM25,
    "rts": RTS,
    "maclr": MACLR,
    "lmtx": LMTX,
    "lmtx4": LMTX4,
    "lmtx-small": LMTX_SMALL,
    "student": STUDENT,
    "student-titles": STUDENT_TITLES,
    "teacher": TEACHER,
    "supervised": SUPERVISED,
}
"""In the order of the table: from no information to gold labels."""

__all__ = ["DEPTH", "METHODS", "Method", "Ranking", "Task"]
