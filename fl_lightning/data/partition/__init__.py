"""One pile of records dealt out to departments and clients: `reader` → `columns` → `strategies` → `writer`."""
