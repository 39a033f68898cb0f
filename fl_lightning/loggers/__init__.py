"""Lightning loggers: made from the config (`factory`), resumed (`service_runs`), given images and texts (`media`).

`distributions` makes quantiles of many clients' figures.
"""
