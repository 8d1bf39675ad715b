"""What `convserve batch` does: many inputs through a layer, with a journal from which a run that was cut short goes on.

inputs.py      which files there are, and the names of their outputs
sources.py     what is in them: arrays, read by rows
prefetch.py    some are read while others are computed
outputs.py     files that are there as a whole or not at all
journal.py     what is done
counters.py    how much is done
runner.py      all of it: read, compute, write, note
"""
