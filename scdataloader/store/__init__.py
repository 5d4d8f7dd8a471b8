"""Our own form on disk: one record for each cell, one read for each record."""
