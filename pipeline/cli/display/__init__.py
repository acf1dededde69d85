"""Shows plans, runs, artifacts and comparisons: live on a terminal, as plain lines elsewhere, and as data for `--json`.

Owns the output for people. Knows nothing of how stages run: the runner calls a view. Import the module you need: this
package imports none, so that listing artifacts does not load the runner.
"""
