"""From parsed rows to the shapes that stages take: formats, turns, tool calls, comparisons, votes."""
