"""Files that are written continuously: logs, with rotation."""
