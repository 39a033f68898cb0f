"""Inspection of a folder of departments: all problems at once, where `fit` stops at the first.

=========  ==============================================================
file       does
=========  ==============================================================
scan       finds every client and reads every record, noting errors
checks     counts, lengths, duplicates and leaks of what was read
report     prints them
=========  ==============================================================
"""
