"""The job of station-extremes.yaml with NumPy-speed batches: any Arrow function may stand in map_batch.

python station_extremes.py measurements.csv
"""

import pyarrow as pa
import pyarrow.compute as pc

import cortex


class StationExtremes(cortex.MapReduceJob):
    """Coldest, mean and hottest reading of every station, in Fahrenheit."""

    input_format = "csv"
    columns = {"station": "string", "temp": "float64"}
    key = "station"
    aggregate = {
        "coldest": "min(f)",
        "mean": "mean(f)",
        "hottest": "max(f)",
        "readings": "count()",
    }

    def map_batch(self, batch):
        batch = batch.filter((pc.field("temp") > -90) & (pc.field("station") != "test"))
        fahrenheit = pc.add(pc.divide(pc.multiply(batch["temp"], 9), 5), 32)
        return pa.RecordBatch.from_arrays([batch["station"], fahrenheit], names=["station", "f"])


if __name__ == "__main__":
    StationExtremes.main()
