"""Every byte on disk, each layout defined once."""
