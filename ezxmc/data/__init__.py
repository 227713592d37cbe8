"""Input files: documents, labels and gold tags, streamed and checked row by row."""

from ezxmc.data.cards import DataCard, card_files
from ezxmc.data.catalog import Catalog, calibration_part, split_documents
from ezxmc.data.datasets import Statistics, compute_statistics, open_folder
from ezxmc.data.documents import iter_documents, read_documents, read_labels, unfit_character
from ezxmc.data.gold import read_gold
from ezxmc.data.matching import COLUMNS, columns_for
from ezxmc.data.predictions import read_shortlist
from ezxmc.data.rows import iter_rows
from ezxmc.data.xmc import XmcRepo, convert
from ezxmc.errors import RowError, RowProblem, RowReport

__all__ = [
    "COLUMNS",
    "Catalog",
    "DataCard",
    "RowError",
    "RowProblem",
    "RowReport",
    "Statistics",
    "XmcRepo",
    "calibration_part",
    "card_files",
    "columns_for",
    "compute_statistics",
    "convert",
    "iter_documents",
    "iter_rows",
    "open_folder",
    "read_documents",
    "read_gold",
    "read_labels",
    "read_shortlist",
    "split_documents",
    "unfit_character",
]
