"""What is read and written: images, tables with provenance, and the portable pair of ends."""
