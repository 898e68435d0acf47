"""The benchmark: how long a sandbox takes until it is ready, and until its first result, here and elsewhere.

Run as `python -m bench`; `docs/performance.md` says what is measured and why, and holds the last table. A `contender` is
anything that can be asked for a sandbox; `rounds` asks all of them in turn, `results` keeps what came, `render` and
`plots` show it. No number is written by hand anywhere.
"""
