"""TerraMind as a tool of the xarray world."""
