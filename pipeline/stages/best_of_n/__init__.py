"""The kind `best_of_n`: the best of several answers becomes a demonstration, and with another one a pair."""
