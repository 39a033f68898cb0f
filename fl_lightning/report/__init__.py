"""What a run looks like: pictures, and one page that needs nothing but itself.

`read_run` reads a run folder, whatever of it there is; one file a theme makes a `Section` of it (text, tables, and how
to draw its pictures); `write_report` draws the pictures and writes the page.
"""
