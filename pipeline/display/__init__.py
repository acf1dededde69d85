"""How plans, runs, artifacts and comparisons look on a terminal, and as plain lines where there is none.

Owns what a person sees. Knows nothing of how stages run: the runner calls a view. Import the module you need: this
package imports none, so that listing artifacts does not load the runner.
"""
