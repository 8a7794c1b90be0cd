"""HDF5 files into the store, and arrays out of it."""
