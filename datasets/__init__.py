"""Seeded generators of test data with known answers: streaming, of any size.

The same seed gives the same bytes on every machine and NumPy (all randomness is integer arithmetic on
the row number, see `datasets.randomness`), so a test can pin a checksum, and an answer is computed
while the rows are made: exact integers, never a second reading of the file.
"""

from datasets.dataset import Dataset
from datasets.distinct import Distinct
from datasets.hotkey import HotKey
from datasets.lineitem import LineItem
from datasets.orders import Items, Orders
from datasets.stations import Stations
from datasets.text import Text

DATASETS: dict[str, type[Dataset]] = {
    "stations": Stations,
    "text": Text,
    "orders": Orders,
    "items": Items,
    "hotkey": HotKey,
    "distinct": Distinct,
    "lineitem": LineItem,
}

__all__ = ["DATASETS", "Dataset", "Distinct", "HotKey", "Items", "LineItem", "Orders", "Stations", "Text"]
