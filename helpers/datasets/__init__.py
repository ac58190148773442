"""One module per source of data, each with one function `load(path, size, limit, seed)` -> Dataset."""
