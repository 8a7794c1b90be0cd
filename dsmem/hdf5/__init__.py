"""What an HDF5 file holds, and how its bytes come out of it."""
