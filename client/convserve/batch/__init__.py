"""What `convserve batch` does: many inputs through a layer, with a journal from which a run that was cut short goes on.

inputs.py      which inputs there are, and the names of their outputs
listing.py     what is in folders
sources.py     what is in them: arrays, read by rows
prefetch.py    some are read while others are computed
outputs.py     files that are there as a whole or not at all
formats/       how they are stored
journal.py     what is done
counters.py    how much is done
job.py         what a run is given, and how an array is divided
dry_run.py     what a run would do
runner.py      all of it: read, compute, write, note
"""
