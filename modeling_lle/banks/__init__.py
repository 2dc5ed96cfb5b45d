"""What a HistoryBank is made and searched with: encoding, the index, exchange with Parquet."""
