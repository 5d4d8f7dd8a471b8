"""A plug-in of scdataloader: only what its protocols document."""
