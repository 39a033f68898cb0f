"""Pictures of a run, and one HTML page that needs no other file.

`fl_lightning.runs.artifact_reader` reads the run folder; each file of a topic turns it into a `Section` (text, tables,
and functions that draw its pictures); `write_report` draws the pictures and writes the page.
"""
