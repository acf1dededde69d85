"""Names of columns: renaming, unused columns, and columns that contradict a label."""
