"""Lightning loggers: made from the config (`factory`), resumed (`service_runs`), given images and texts (`media`)."""
