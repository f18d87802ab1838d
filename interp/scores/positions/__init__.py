"""Where a head looks along a text: offsets, distances, repeats, copies."""
