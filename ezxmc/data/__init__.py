"""Input files: documents, labels and gold tags, streamed and checked row by row."""

from ezxmc.data.catalog import Catalog, calibration_part
from ezxmc.data.documents import COLUMNS, iter_documents, read_documents, read_labels, unfit_character
from ezxmc.data.gold import read_gold
from ezxmc.data.readers import iter_rows
from ezxmc.data.shortlists import read_shortlist
from ezxmc.data.split import split_documents
from ezxmc.data.validate import RowError, RowProblem, RowReport

__all__ = [
    "COLUMNS",
    "Catalog",
    "RowError",
    "RowProblem",
    "RowReport",
    "calibration_part",
    "iter_documents",
    "iter_rows",
    "read_documents",
    "read_gold",
    "read_labels",
    "read_shortlist",
    "split_documents",
    "unfit_character",
]
