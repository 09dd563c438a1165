"""Files: logs with rotation, atomic replacement, detection of changes, and advice on errors."""
